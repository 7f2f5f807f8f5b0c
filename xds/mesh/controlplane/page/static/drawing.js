// The drawing of a map. After a change, only the elements that look different are made again.

import { h, keyed, s } from "./dom.js";
import { OUTSIDE, breaksUrl, content, edgeText, inputs, open, toggle } from "./connections.js";
import { change } from "./route.js";
import { total } from "./words.js";

const DENSE = 100; // number of edges from which they are drawn fainter
const WIDE = 600; // width in pixels from which a namespace has room for long texts
const RATES = [10, 100, 1000]; // requests per minute from which a line is wider

/** Return an empty drawing: { element, update(data, names, isDim, query) }. */
export function drawing() {
  const [boxes, lines, labels, titles, nodes] = [{}, {}, { "aria-hidden": "true" }, {}, {}].map((attributes) => s("g", attributes));
  const element = s("svg", { role: "group", "aria-label": "Map of workloads and services" }, symbols(), boxes, lines, labels, titles, nodes);
  element.addEventListener("keydown", moveFocus);

  function update(data, names, isDim, query) {
    const { width, height, edges } = data;
    element.setAttribute("class", `map${edges.length > DENSE ? " dense" : ""}`);
    for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height })) element.setAttribute(name, value);
    const drawn = edges.map((edge) => ({
      key: edge.id,
      names,
      label: edge.label,
      inputs: { ...inputs(edge, names), path: edge.path, level: widthLevel(edge), isDim: isDim([edge.from, edge.to]), isSelected: isSelected(edge, query) },
    }));
    const labelled = drawn.filter((edge) => edge.label).map((edge) => ({ ...edge, inputs: { ...edge.inputs, label: edge.label } }));
    keyed(boxes, data.namespaces.map((box) => ({ key: box.name, inputs: box })), namespaceBox);
    // The last one is drawn on top: the worst.
    keyed(lines, drawn.toReversed(), edgeLine);
    keyed(labels, labelled, edgeLabel);
    keyed(titles, data.namespaces.map((box) => ({ key: box.name, inputs: box })), namespaceHeader);
    keyed(nodes, data.nodes.map((node) => ({ key: node.id, name: names.get(node.id), inputs: { ...node, isDim: isDim([node.id]), isSelected: query.node === node.id } })), nodeBox);
  }
  return { element, update };
}

/** Return the definitions of the symbols of results. */
export function symbols() {
  return s(
    "defs",
    {},
    s("symbol", { id: "symbol-mtls", viewBox: "0 0 16 16" }, s("path", { d: "M5 7V5a3 3 0 0 1 6 0v2", class: "line" }), s("rect", { x: 3, y: 7, width: 10, height: 7, rx: 1.5, class: "solid" })),
    s("symbol", { id: "symbol-mixed", viewBox: "0 0 16 16" }, s("circle", { cx: 8, cy: 8, r: 5.5, class: "line" }), s("path", { d: "M8 2.5a5.5 5.5 0 0 1 0 11z", class: "solid" })),
    s("symbol", { id: "symbol-plaintext", viewBox: "0 0 16 16" }, s("path", { d: "M5 7V5a3 3 0 0 1 5.8-1", class: "line" }), s("rect", { x: 3.7, y: 7.7, width: 8.6, height: 5.6, rx: 1.2, class: "line" })),
    s("symbol", { id: "symbol-denied", viewBox: "0 0 16 16" }, s("circle", { cx: 8, cy: 8, r: 5.5, class: "line" }), s("path", { d: "M4.5 8h7", class: "line" })),
    s("symbol", { id: "symbol-fails", viewBox: "0 0 16 16" }, s("path", { d: "M4 4l8 8M12 4l-8 8", class: "line" })),
  );
}

/** Return the classes of a prediction: its result, and whether policies allow only some requests. */
export function kind({ result, conditions }) {
  return conditions.length ? `${result} conditional` : result;
}

/** Return the symbol of a result. */
export function use(result, x, y) {
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

function namespaceBox({ inputs: box }) {
  return s("rect", { class: "namespace", x: box.x + 0.5, y: box.y + 0.5, width: box.width - 1, height: box.height - 1, rx: 8 });
}

/** Return the title of a namespace, which opens and closes it, and the link to the answer what would break. */
function namespaceHeader({ inputs: box }) {
  const room = Math.floor((box.width - (box.width < WIDE ? 180 : 250)) / 8); // characters, beside the link
  const name = shorten(box.name, room);
  if (box.name === OUTSIDE) return s("g", {}, s("text", { x: box.x + 12, y: box.y + 20, class: "outside-title" }, "Outside the mesh"));
  const right = box.x + box.width - 12;
  const [link, linkWidth] = box.width < WIDE ? ["What would break? →", 120] : ["What would break if STRICT? →", 185];
  return s(
    "g",
    {},
    s(
      "g",
      { class: "namespace-title", role: "button", tabindex: 0, "aria-expanded": String(box.open), "aria-label": `Namespace ${box.name}`, "data-key": `namespace ${box.name}`, ...activate(() => toggle([box.name])) },
      s("title", {}, box.name),
      s("rect", { x: box.x + 4, y: box.y + 4, width: 32 + 8 * name.length, height: 22, rx: 5, class: "hit" }),
      s("text", { x: box.x + 12, y: box.y + 20, "aria-hidden": "true" }, `${box.open ? "▾" : "▸"} ${name}`),
    ),
    s(
      "a",
      { href: breaksUrl(box.name), class: "namespace-link", "data-key": `migration ${box.name}`, "aria-label": `What would break if namespace ${box.name} were STRICT` },
      s("rect", { x: right - linkWidth, y: box.y + 3, width: linkWidth + 8, height: 24, rx: 5, class: "hit" }),
      s("text", { x: right, y: box.y + 20, "text-anchor": "end", "aria-hidden": "true" }, link),
    ),
  );
}

function nodeBox({ inputs: node, name: fullName }) {
  const isClient = node.kind.startsWith("workload");
  const detail = isClient && node.pods ? `${node.sidecars} of ${node.pods}` : "";
  const name = node.name || content(node);
  const label = isClient && !detail ? fullName : `${isClient ? "Workload" : "Service"} ${fullName}: ${isClient ? `${detail} pods have a sidecar` : node.why || "ready"}`;
  const width = Math.floor((node.width - 16) / 7); // characters
  const showsDetail = detail && (node.name || name.length + detail.length < width);
  const room = width - (showsDetail ? detail.length + 1 : node.problem ? 2 : 0);
  return s(
    "g",
    {
      class: `node ${isClient ? "client" : "service"}${node.problem ? " bad" : ""}${node.isSelected ? " selected" : ""}${node.isDim ? " dim" : ""}`,
      role: "button",
      tabindex: 0,
      "aria-pressed": String(node.isSelected),
      "aria-label": label,
      "data-key": node.id,
      ...activate(() => change({ node: node.isSelected ? "" : node.id })),
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

function edgeLine({ inputs: edge, names }) {
  const { result } = edge.predicted;
  const label = edgeText(edge, names);
  return s(
    "g",
    {
      class: `edge ${kind(edge.predicted)} ${edge.level}${edge.observed?.isFailing ? " failing" : ""}${edge.isDim ? " dim" : ""}${edge.isSelected ? " selected" : ""}`,
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

/** Return how a line is drawn: `predicted` without observed traffic, or its width by the requests per minute. */
export function widthLevel({ observed }) {
  return observed ? `rate-${RATES.filter((limit) => total(observed) >= limit).length}` : "predicted";
}

function edgeLabel({ inputs: edge, names }) {
  const { x, y, width, height, text } = edge.label;
  return s(
    "g",
    { class: `label edge ${kind(edge.predicted)}${edge.observed?.isFailing ? " failing" : ""}${edge.isDim ? " dim" : ""}${edge.isSelected ? " selected" : ""}`, "data-edge": edge.id, onclick: () => open(edge) },
    s("title", {}, edgeText(edge, names)),
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

/** Return what the symbols and lines mean. */
export function legend() {
  const texts = { mtls: "mutual TLS", mixed: "n of m endpoints use mutual TLS", plaintext: "plaintext (dashed)", denied: "denied by an AuthorizationPolicy (dotted)", fails: "fails, with the reason" };
  return h(
    "ul",
    { class: "legend", "aria-label": "Legend" },
    Object.entries(texts).map(([result, text]) =>
      h("li", { class: `edge ${result}` }, s("svg", { width: 46, height: 16, "aria-hidden": "true" }, s("path", { d: "M0 8H26", class: "stroke" }), use(result, 30, 1)), text),
    ),
    h("li", { class: "edge mtls conditional" }, s("svg", { width: 26, height: 16, "aria-hidden": "true" }, s("path", { d: "M0 8H26", class: "stroke" })), "conditional (or if): AuthorizationPolicies allow only some requests"),
    h("li", {}, "n of n beside a workload: pods with a sidecar"),
    h("li", {}, "faint: no observed traffic; wider: more requests"),
    h("li", { class: "edge failing" }, s("svg", { width: 26, height: 16, "aria-hidden": "true" }, s("path", { d: "M0 8H26", class: "stroke" })), "red: requests fail"),
    h("li", {}, "Click a line to explain it. Keyboard: arrow keys and Enter."),
  );
}
