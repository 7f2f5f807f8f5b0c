// The map: workloads on the left, services on the right, and what their connections use.

import { get } from "./api.js";
import { badge, count, empty, h, observedText, replace, s } from "./dom.js";
import { explain } from "./panel.js";
import { change, current, url } from "./route.js";
import { table } from "./table.js";
import { choice, frame, matches, namespaceOptions, search, sync } from "./toolbar.js";

export const title = "Map";
export const topics = ["map"];

const WORDS = { mtls: "mutual TLS", mixed: "partly mutual TLS", plaintext: "plaintext", fails: "fails" };
const KINDS = { mtls: "good", mixed: "warn", plaintext: "warn", fails: "bad" };
const DENSE = 100; // number of edges from which they are drawn fainter
const WIDE = 600; // width in pixels from which a namespace has room for long texts
const RATES = [10, 100, 1000]; // requests per minute from which a line is wider
const RESIZE_DELAY = 200; // milliseconds

export function create(route, refresh) {
  const state = {};
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(
    search(route, "Search workloads and services"),
    namespaces,
    choice(route, "only", "Show", [["", "All connections"], ["problems", "Only problems"], ["plaintext", "Only plaintext"]]),
  );
  let width = 0;
  let timer = 0;
  const observer = new ResizeObserver(() => {
    if (!output.isConnected || !width || Math.abs(output.clientWidth - width) < 8) return;
    clearTimeout(timer);
    timer = setTimeout(refresh, RESIZE_DELAY);
  });
  observer.observe(output);
  return {
    ...view,
    load: ({ query }) => {
      width = output.clientWidth;
      return get("map", { width: String(width), opened: query.opened, namespace: query.namespace, node: query.node, only: query.only });
    },
    isVolatile: (data) => !data.current,
    show(data, { query }) {
      sync(toolbar, { query });
      namespaceOptions(namespaces.querySelector("select"), data.allNamespaces, query.namespace);
      const names = new Map(data.nodes.map((node) => [node.id, nodeName(node)]));
      const isFiltered = query.only || query.namespace;
      replace(
        output,
        h("p", { class: "summary", role: "status" }, summary(data)),
        data.nodes.length
          ? [drawing(data, names, query), legend(), listing(data, names, state, () => refresh())]
          : empty(isFiltered ? "Nothing matches the filters" : "There are no workloads and services", isFiltered ? "" : "Apply Pods and Services to see them here."),
      );
    },
  };
}

function summary(data) {
  const number = (result) => data.edges.filter((edge) => edge.predicted.result === result).length;
  const parts = Object.keys(WORDS).map((result) => [number(result), WORDS[result]]);
  const listed = parts.filter(([total]) => total).map(([total, word]) => `${total} ${word === "fails" ? "failing" : word}`);
  return [
    `Possible connections: ${listed.join(", ") || "none"}.`,
    data.moreEdges ? ` ${count(data.moreEdges, "further one")} not shown: choose a namespace.` : "",
    data.edges.some((edge) => edge.observed) ? "" : " No observed traffic.",
    data.edges.length > DENSE ? " Select a workload or a service to see only its connections." : "",
    data.current ? "" : " Computing the latest state.",
  ].join("");
}

function nodeName(node) {
  if (node.name) return `${node.name}.${node.namespace}`;
  return `${node.workloads === undefined ? count(node.services, "service") : count(node.workloads, "workload")} of ${node.namespace}`;
}

// --- the drawing ---------------------------------------------------------------------------------------------

function drawing(data, names, query) {
  const linked = new Set(data.edges.flatMap((edge) => [edge.from, edge.to]));
  const isDim = (ids) => {
    if (query.node && !ids.some((id) => id === query.node || linked.has(id))) return true;
    return Boolean(query.search) && !ids.some((id) => matches(names.get(id), query.search));
  };
  const svg = s(
    "svg",
    { class: `map${data.edges.length > DENSE ? " dense" : ""}`, viewBox: `0 0 ${data.width} ${data.height}`, width: data.width, height: data.height, role: "group", "aria-label": "Map of workloads and services" },
    symbols(),
    data.namespaces.map(namespaceBox),
    // The last one is drawn on top: the worst.
    s("g", {}, data.edges.toReversed().map((edge) => edgeLine(edge, names, query, isDim([edge.from, edge.to])))),
    s("g", { "aria-hidden": "true" }, data.edges.filter((edge) => edge.label).map((edge) => labelOf(edge, query, isDim([edge.from, edge.to])))),
    data.namespaces.map((box) => [namespaceTitle(box, query), namespaceLink(box)]),
    data.nodes.map((node) => nodeBox(node, names, query, isDim([node.id]))),
  );
  svg.addEventListener("keydown", moveFocus);
  return svg;
}

function symbols() {
  return s(
    "defs",
    {},
    s("symbol", { id: "symbol-mtls", viewBox: "0 0 16 16" }, s("path", { d: "M5 7V5a3 3 0 0 1 6 0v2", class: "line" }), s("rect", { x: 3, y: 7, width: 10, height: 7, rx: 1.5, class: "solid" })),
    s("symbol", { id: "symbol-mixed", viewBox: "0 0 16 16" }, s("circle", { cx: 8, cy: 8, r: 5.5, class: "line" }), s("path", { d: "M8 2.5a5.5 5.5 0 0 1 0 11z", class: "solid" })),
    s("symbol", { id: "symbol-plaintext", viewBox: "0 0 16 16" }, s("path", { d: "M5 7V5a3 3 0 0 1 5.8-1", class: "line" }), s("rect", { x: 3.7, y: 7.7, width: 8.6, height: 5.6, rx: 1.2, class: "line" })),
    s("symbol", { id: "symbol-fails", viewBox: "0 0 16 16" }, s("path", { d: "M4 4l8 8M12 4l-8 8", class: "line" })),
  );
}

function use(result, x, y) {
  return s("use", { href: `#symbol-${result}`, x, y, width: 14, height: 14 });
}

function activate(action) {
  return {
    onclick: action,
    onkeydown: (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      action();
    },
  };
}

function namespaceBox(box) {
  return s("rect", { class: "namespace", x: box.x + 0.5, y: box.y + 0.5, width: box.width - 1, height: box.height - 1, rx: 8 });
}

function namespaceTitle(box, query) {
  function toggle() {
    const names = new Set((query.opened ?? "").split(",").filter(Boolean));
    if (!names.delete(box.name)) names.add(box.name);
    change({ opened: [...names].join() });
  }
  const room = Math.floor((box.width - (box.width < WIDE ? 180 : 250)) / 8); // characters, beside the link
  const name = shorten(box.name, room);
  return s(
    "g",
    { class: "namespace-title", role: "button", tabindex: 0, "aria-expanded": String(box.open), "aria-label": `Namespace ${box.name}`, "data-key": `namespace ${box.name}`, ...activate(toggle) },
    s("title", {}, box.name),
    s("rect", { x: box.x + 4, y: box.y + 4, width: 32 + 8 * name.length, height: 22, rx: 5, class: "hit" }),
    s("text", { x: box.x + 12, y: box.y + 20, "aria-hidden": "true" }, `${box.open ? "▾" : "▸"} ${name}`),
  );
}

/** Return the link from a namespace to the answer who would break. */
function namespaceLink(box) {
  return s(
    "a",
    { href: url("migration", "", { namespace: box.name }), class: "namespace-link", "data-key": `migration ${box.name}`, "aria-label": `What would break if namespace ${box.name} were STRICT` },
    s("text", { x: box.x + box.width - 12, y: box.y + 20, "text-anchor": "end", "aria-hidden": "true" }, box.width < WIDE ? "What would break? →" : "What would break if STRICT? →"),
  );
}

function nodeBox(node, names, query, isDim) {
  const isClient = node.kind.startsWith("workload");
  const isSelected = query.node === node.id;
  const detail = isClient ? `${node.sidecars} of ${node.pods}` : "";
  const name = node.name || (isClient ? count(node.workloads, "workload") : count(node.services, "service"));
  const label = `${isClient ? "Workload" : "Service"} ${names.get(node.id)}: ${isClient ? `${detail} pods have a sidecar` : node.problem || "ready"}`;
  const width = Math.floor((node.width - 16) / 7); // characters
  const showsDetail = detail && (node.name || name.length + detail.length < width);
  const room = width - (showsDetail ? detail.length + 1 : node.problem ? 2 : 0);
  return s(
    "g",
    {
      class: `node ${isClient ? "client" : "service"}${node.problem ? " bad" : ""}${isSelected ? " selected" : ""}${isDim ? " dim" : ""}`,
      role: "button",
      tabindex: 0,
      "aria-pressed": String(isSelected),
      "aria-label": label,
      "data-key": node.id,
      "data-node": node.id,
      ...activate(() => change({ node: isSelected ? "" : node.id })),
    },
    s("title", {}, label),
    s("rect", { x: node.x, y: node.y, width: node.width, height: node.height, rx: isClient ? 6 : 17 }),
    s("text", { x: node.x + (isClient ? 10 : 14), y: node.y + 22, "aria-hidden": "true" }, shorten(name, room)),
    showsDetail ? s("text", { x: node.x + node.width - 8, y: node.y + 22, class: "detail", "text-anchor": "end", "aria-hidden": "true" }, detail) : "",
    !isClient && node.problem ? use("fails", node.x + node.width - 26, node.y + 10) : "",
  );
}

function shorten(text, length) {
  return text.length > length ? `${text.slice(0, Math.max(1, length - 1))}…` : text;
}

function edgeLabel(edge, names) {
  const predicted = edge.predicted;
  const total = predicted.mtls + predicted.plaintext + predicted.fails;
  const counts = predicted.result === "mixed" ? `, ${predicted.mtls} of ${total} endpoints` : predicted.fails && predicted.fails < total ? `, ${predicted.fails} of ${total} endpoints` : "";
  const reasons = predicted.reasons.length ? ` (${predicted.reasons.join(", ")})` : "";
  return `${names.get(edge.from)} to ${names.get(edge.to)}: ${WORDS[predicted.result]}${counts}${reasons}`;
}

function open(edge) {
  if (edge.connections === 1) explain(edge.example.client, edge.example.service);
  else change({ opened: toOpen(edge), node: "" });
}

/** Return the opened namespaces of the URL, with those of an edge opened. */
function toOpen(edge) {
  const names = new Set((current().query.opened ?? "").split(",").filter(Boolean));
  for (const id of [edge.from, edge.to]) {
    if (id.startsWith("workloads/") || id.startsWith("services/")) {
      const name = id.split("/")[1];
      if (!names.delete(name)) names.add(name);
    }
  }
  return [...names].join();
}

function edgeLine(edge, names, query, isDim) {
  const { result } = edge.predicted;
  const label = edgeLabel(edge, names);
  return s(
    "g",
    {
      class: `edge ${result} ${edge.observed ? `rate-${widthLevel(edge.observed)}` : "predicted"}${isDim ? " dim" : ""}${isSelected(edge, query) ? " selected" : ""}`,
      role: "button",
      tabindex: -1,
      "aria-label": label,
      "data-key": edge.id,
      "data-result": result,
      ...activate(() => open(edge)),
    },
    s("title", {}, label),
    s("path", { d: edge.path, class: "hit" }),
    s("path", { d: edge.path, class: "stroke" }),
  );
}

/** Return how wide a line is, from 0 to 3: by its observed requests per minute. */
function widthLevel(observed) {
  const total = Object.values(observed.requestsPerMinute).reduce((sum, value) => sum + value, 0);
  return RATES.filter((limit) => total >= limit).length;
}

function labelOf(edge, query, isDim) {
  const { x, y, width, height, text } = edge.label;
  return s(
    "g",
    { class: `label edge ${edge.predicted.result}${isDim ? " dim" : ""}${isSelected(edge, query) ? " selected" : ""}`, "data-edge": edge.id, onclick: () => open(edge) },
    s("rect", { x, y, width, height, rx: 9 }),
    use(edge.predicted.result, x + 4, y + 2),
    text ? s("text", { x: x + 21, y: y + 13 }, text) : "",
  );
}

function isSelected(edge, { client, service }) {
  return edge.connections === 1 && client === edge.example.client && service === edge.example.service;
}

/** Move the focus with the arrow keys: from a node to its connections, between them, and to their other end. */
function moveFocus(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 0, ArrowLeft: 0 };
  const focused = document.activeElement;
  if (!(event.key in steps) || !event.currentTarget.contains(focused)) return;
  event.preventDefault();
  const edges = [...event.currentTarget.querySelectorAll(".edge[role]")].reverse();
  const nodes = [...event.currentTarget.querySelectorAll(".node, .namespace-title")];
  const end = event.key === "ArrowRight" ? 1 : 0;
  const find = (id) => nodes.find((node) => node.dataset.key === id);
  let next;
  if (focused.classList.contains("edge")) {
    const ends = focused.dataset.key.split(" ");
    if (steps[event.key] === 0) next = find(ends[end]);
    else {
      const siblings = edges.filter((edge) => edge.dataset.key.split(" ")[0] === ends[0]);
      next = siblings[siblings.indexOf(focused) + steps[event.key]];
    }
  } else if (steps[event.key] === 0) next = edges.find((edge) => edge.dataset.key.split(" ")[1 - end] === focused.dataset.key);
  else next = nodes[nodes.indexOf(focused) + steps[event.key]];
  next?.focus();
}

// --- below the drawing ---------------------------------------------------------------------------------------

function legend() {
  const texts = { mtls: "mutual TLS", mixed: "n of m endpoints use mutual TLS", plaintext: "plaintext (dashed)", fails: "fails, with the reason" };
  return h(
    "ul",
    { class: "legend", "aria-label": "Legend" },
    Object.entries(texts).map(([result, text]) =>
      h("li", { class: `edge ${result}` }, s("svg", { width: 46, height: 16, "aria-hidden": "true" }, s("path", { d: "M0 8H26", class: "stroke" }), use(result, 30, 1)), text),
    ),
    h("li", {}, "n of n beside a workload: pods with a sidecar"),
    h("li", {}, "faint: predicted, not observed; wider: more requests"),
    h("li", {}, "Click a line to explain it. Keyboard: arrow keys and Enter."),
  );
}

function listing(data, names, state, onchange) {
  const columns = [
    { title: "Client", value: (edge) => names.get(edge.from), cell: (edge) => names.get(edge.from) },
    { title: "Service", value: (edge) => names.get(edge.to), cell: (edge) => names.get(edge.to) },
    { title: "Predicted", value: (edge) => edge.predicted.result, cell: (edge) => badge(KINDS[edge.predicted.result], edgeLabel(edge, names).split(": ")[1]) },
    { title: "Observed", cell: (edge) => observedText(edge.observed) },
    { title: "Details", cell: (edge) => h("button", { type: "button", "data-key": `explain ${edge.id}`, "aria-label": `${edge.connections === 1 ? "Explain" : "Open"} ${names.get(edge.from)} to ${names.get(edge.to)}`, onclick: () => open(edge) }, edge.connections === 1 ? "Explain" : `Open ${edge.connections} connections`) },
  ];
  return h(
    "details",
    { class: "listing", open: state.isOpen, ontoggle: (event) => (state.isOpen = event.currentTarget.open) },
    h("summary", { "data-key": "listing" }, `Connections as a table (${data.edges.length})`),
    table("Connections", columns, data.edges, state, onchange),
  );
}
