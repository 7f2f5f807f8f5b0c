// The matrix of a large mesh: clients by namespace in rows, services in columns, and what their connections use.

import { edgeText, inputs, open, toggle } from "./connections.js";
import { h, keyed, s } from "./dom.js";
import { kind, symbols, use, widthLevel } from "./drawing.js";
import { total, rate } from "./words.js";

/** Return an empty matrix: { element, update(data, names) }. */
export function matrix() {
  const [head, body] = [h("thead"), h("tbody")];
  const caption = h("caption", { class: "hidden-text" }, "Connections of the clients of each namespace (rows) to the services of each namespace (columns)");
  const element = h("div", { class: "matrix", tabindex: 0, role: "group", "aria-label": "Matrix of namespaces" }, s("svg", { width: 0, height: 0, "aria-hidden": "true" }, symbols()), h("table", {}, caption, head, body));

  function update(data, names) {
    const [clients, services] = ["workload", "service"].map((kind) => data.nodes.filter((node) => node.kind.startsWith(kind)));
    const edges = new Map(data.edges.map((edge) => [edge.id, edge]));
    const cell = (edge) => edge && { ...inputs(edge, names), level: widthLevel(edge), rate: edge.observed ? rate(total(edge.observed)) : "" };
    keyed(head, [{ key: "head", inputs: services.map(({ namespace, why }) => ({ namespace, why })) }], headRow);
    keyed(body, clients.map((node) => ({ key: node.id, names, inputs: { node, cells: services.map((service) => cell(edges.get(`${node.id} ${service.id}`))) } })), bodyRow);
  }
  return { element, update };
}

function headRow({ inputs: services }) {
  return h("tr", {}, h("td", { class: "corner" }, "from \\ to"), services.map(({ namespace, why }) => h("th", { scope: "col" }, namespaceButton(namespace, "to", why))));
}

function bodyRow({ inputs: { node, cells }, names }) {
  const title = node.name ? names.get(node.id) : namespaceButton(node.namespace, "from");
  return h("tr", {}, h("th", { scope: "row" }, title), cells.map((edge) => h("td", {}, edge ? cellButton(edge, names) : "")));
}

function namespaceButton(name, direction, why = "") {
  const problem = why ? `: a service has ${why}` : "";
  return h("button", { type: "button", "data-key": `namespace ${direction} ${name}`, "aria-label": `Open namespace ${name}${problem}`, title: `${name}${problem}`, onclick: () => toggle([name]) }, h("span", {}, why ? `✕ ${name}` : name));
}

function cellButton(edge, names) {
  const label = edgeText(edge, names);
  return h(
    "button",
    { type: "button", class: `edge ${kind(edge.predicted)} ${edge.level}${edge.observed?.isFailing ? " failing" : ""}`, "data-key": edge.id, "data-result": edge.predicted.result, "aria-label": label, title: label, onclick: () => open(edge) },
    s("svg", { width: 14, height: 14, "aria-hidden": "true" }, use(edge.predicted.result, 0, 0)),
    edge.predicted.conditions.length ? " if" : "",
    edge.rate ? h("span", { "aria-hidden": "true" }, edge.rate) : "",
  );
}
