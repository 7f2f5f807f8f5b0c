// The connections of a map: their names, what a click does, and their lists.

import { badge, count, h, keyed } from "./dom.js";
import { explain } from "./panel.js";
import { change, current, url } from "./route.js";
import { table } from "./table.js";
import { KINDS, RESULTS, observedText, observedWords } from "./words.js";

export const OUTSIDE = "outside the mesh"; // stands for a namespace
const MAX_UNFOLDED = 40; // number of connections up to which the list shows those of all services

/** Return the name of a node: NAME.NAMESPACE, or "3 services of NAMESPACE". */
export function nodeName(node) {
  if (node.namespace === OUTSIDE) return `${node.name} ${OUTSIDE}`;
  return node.name ? `${node.name}.${node.namespace}` : `${content(node)} of ${node.namespace}`;
}

/** Return the number of workloads or services of a closed namespace's node. */
export function content(node) {
  return node.workloads === undefined ? count(node.services, "service") : count(node.workloads, "workload");
}

/** Return what edges count: endpoints, unless the client's pods, or the workloads behind it, can differ. */
export function unit(client) {
  return client.name && (client.sidecars === 0 || client.sidecars === client.pods) ? "endpoints" : "cases";
}

/** Return what is predicted, in words: "fails, 1 of 2 endpoints (server requires mutual TLS)". */
export function predictedText({ predicted, unit: counted }) {
  const total = predicted.mtls + predicted.plaintext + predicted.fails;
  const number = predicted.result === "mixed" ? predicted.mtls : predicted.fails;
  const counts = number && number < total ? `, ${number} of ${total} ${counted}` : "";
  const reasons = predicted.why.length ? ` (${predicted.why.join(", ")})` : "";
  return `${RESULTS[predicted.result]}${counts}${reasons}`;
}

/** Return which requests policies allow, if they allow only some: "conditional: if GET /info (KIND NAMESPACE/NAME)". */
function conditionText({ predicted: { conditions, moreConditions } }) {
  return conditions.length ? `conditional: ${conditions.join(", ")}${moreConditions ? ` and ${moreConditions} more` : ""}` : "";
}

/** Return a connection as a sentence. */
export function edgeText(edge, names) {
  const [observed, condition] = [observedWords(edge.observed), conditionText(edge)];
  return `${names.get(edge.from)} to ${names.get(edge.to)}: ${predictedText(edge)}${condition && `, ${condition}`}${observed ? `. Observed: ${observed}` : ""}`;
}

/** Explain a connection, open the closed namespaces that it connects, or show which clients outside were observed. */
export function open(edge) {
  if (edge.connections === 1 && !edge.example.client) {
    location.hash = breaksUrl(edge.to.split("/")[1]);
    return;
  }
  if (edge.connections === 1) return explain(edge.example.client, edge.example.service);
  const closed = [edge.from, edge.to].filter((id) => /^(workloads|services)\//.test(id)).map((id) => id.split("/")[1]);
  toggle(new Set(closed), { node: "" });
}

/** Open the closed ones of some namespaces, and close the open ones. */
export function toggle(namespaces, query = {}) {
  const names = new Set((current().query.opened ?? "").split(",").filter(Boolean));
  for (const name of namespaces) if (!names.delete(name)) names.add(name);
  change({ ...query, opened: [...names].join() });
}

/** Return the address of the answer what would break if a namespace were STRICT. */
export function breaksUrl(namespace) {
  return url("migration", "", { namespace });
}

// --- a table of all ------------------------------------------------------------------------------------------

/** Return the table of connections, which is only filled while it is open: { element, update(data, names) }. */
export function listing(onchange) {
  const state = {};
  const summary = h("summary", { "data-key": "listing" });
  const body = h("div", {});
  let latest = null;
  function fill() {
    if (element.open && latest) keyed(body, [{ key: "table", inputs: [latest.data.edges, state] }], () => table("Connections", columns(latest.names), latest.data.edges, state, onchange));
  }
  const element = h("details", { class: "listing", ontoggle: fill }, summary, body);
  function update(data, names) {
    latest = { data, names };
    summary.textContent = `Connections as a table (${data.edges.length})`;
    fill();
  }
  return { element, update };
}

function predictedCell(edge) {
  const condition = conditionText(edge);
  return [badge(KINDS[edge.predicted.result], predictedText(edge)), condition ? h("span", { class: "note" }, ` ${condition}`) : ""];
}

function columns(names) {
  return [
    { title: "Client", value: (edge) => names.get(edge.from), cell: (edge) => names.get(edge.from) },
    { title: "Service", value: (edge) => names.get(edge.to), cell: (edge) => names.get(edge.to) },
    { title: "Predicted", value: (edge) => edge.predicted.result, cell: predictedCell },
    { title: "Observed", cell: (edge) => observedText(edge.observed) },
    { title: "Details", cell: (edge) => h("button", { type: "button", "data-key": `explain ${edge.id}`, "aria-label": `${edge.connections === 1 ? "Explain" : "Open"} ${names.get(edge.from)} to ${names.get(edge.to)}`, onclick: () => open(edge) }, edge.connections === 1 ? "Explain" : `Open ${edge.connections} connections`) },
  ];
}

// --- instead of the drawing on a narrow screen ----------------------------------------------------------------

/** Return the list of services with the connections to them: { element, update(data, names, isDim) }. */
export function list() {
  const element = h("div", { class: "connections" });
  const folded = new Map(); // whether the user has opened or closed a service

  function update(data, names, isDim) {
    const items = data.namespaces.filter((box) => box.name !== OUTSIDE).map((box) => {
      const services = data.nodes
        .filter((node) => node.namespace === box.name && node.services !== undefined)
        .map((node) => ({ node, edges: data.edges.filter((edge) => edge.to === node.id && !isDim([edge.from, edge.to])).map((edge) => inputs(edge, names)) }))
        .filter(({ node, edges }) => edges.length || !isDim([node.id]));
      return { key: box.name, inputs: { name: box.name, open: box.open, services }, names, isShort: data.edges.length <= MAX_UNFOLDED };
    });
    keyed(element, items, namespace);
  }

  function namespace({ inputs: { name, open: isOpen, services }, names, isShort }) {
    return h(
      "section",
      { "aria-label": `Namespace ${name}` },
      h(
        "div",
        { class: "connections-title" },
        h("h2", {}, h("button", { type: "button", class: "toggle", "aria-expanded": String(isOpen), "data-key": `namespace ${name}`, onclick: () => toggle([name]) }, h("span", { "aria-hidden": "true" }, isOpen ? "▾" : "▸"), name)),
        h("a", { href: breaksUrl(name), "data-key": `migration ${name}`, "aria-label": `What would break if namespace ${name} were STRICT` }, "What would break? →"),
      ),
      services.length ? services.map((each) => service(each, names, isShort)) : h("p", { class: "note" }, "No service is called here."),
    );
  }

  function service({ node, edges }, names, isShort) {
    const isOpen = folded.get(node.id) ?? isShort;
    return h(
      "details",
      { open: isOpen, ontoggle: (event) => folded.set(node.id, event.currentTarget.open) },
      h("summary", { "data-key": node.id }, h("strong", {}, node.name || content(node)), " ", node.problem ? badge("bad", node.why) : h("span", { class: "note" }, tally(edges) || "no client")),
      h("ul", {}, edges.map((edge) => h("li", {}, connection(edge, names)))),
    );
  }

  function connection(edge, names) {
    const observed = observedWords(edge.observed);
    return h(
      "button",
      { type: "button", "data-key": edge.id, "data-result": edge.predicted.result, "aria-label": edgeText(edge, names), onclick: () => open(edge) },
      h("span", {}, `from ${names.get(edge.from)}`),
      predictedCell(edge),
      observed ? h("span", { class: "note" }, `observed: ${observed}`) : "",
    );
  }

  return { element, update };
}

/** Return what the elements of a connection are made from. Rates are not part of it: they change all the time. */
export function inputs(edge, names) {
  const { from, to, id, predicted, connections, example, unit: counted } = edge;
  const modes = Object.keys(edge.observed?.requestsPerMinute ?? {});
  const observed = edge.observed && { requestsPerMinute: Object.fromEntries(modes.map((mode) => [mode, 0])), isFailing: edge.observed.isFailing, deniedPerHour: Math.sign(edge.observed.deniedPerHour) };
  return { from, to, id, predicted, connections, example, unit: counted, observed, names: [names.get(from), names.get(to)] };
}

/** Return how many connections have each result. */
export function tally(edges) {
  const number = (result) => edges.filter((edge) => edge.predicted.result === result).length;
  return Object.keys(RESULTS).filter(number).map((result) => `${number(result)} ${result === "fails" ? "failing" : RESULTS[result]}`).join(", ");
}
