// The map: workloads on the left, services on the right, and what their connections use.

import { get } from "./api.js";
import { list, listing, nodeName, tally, unit } from "./connections.js";
import { drawing, legend } from "./drawing.js";
import { count, empty, h, replace } from "./dom.js";
import { matrix } from "./matrix.js";
import { url } from "./route.js";
import { choice, frame, matches, namespaceOptions, search, sync } from "./toolbar.js";

export const title = "Map";
export const topics = ["map"];

const NARROW = 600; // width in pixels below which the connections are a list
const DENSE = 100; // number of edges from which single ones are hard to follow
const SHOWN = { "": "Connections with traffic, and those that fail", possible: "Possible connections", problems: "Connections that fail", plaintext: "Connections without encryption", denied: "Connections that AuthorizationPolicies deny" };
const MAX_OPENED = 30; // matches of a search up to which their namespaces are opened
const RESIZE_DELAY = 200; // milliseconds

export function create(route, refresh) {
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(
    search(route, "Search workloads and services"),
    namespaces,
    choice(route, "only", "Show", [["", "Traffic and problems"], ["possible", "All possible connections"], ["problems", "Only problems"], ["plaintext", "Only plaintext"], ["denied", "Only denied"]]),
  );
  const summary = h("p", { class: "summary", role: "status" });
  const parts = { drawing: drawing(), matrix: matrix(), list: list(), table: listing(refresh), legend: legend() };
  let summarized = "";
  let width = 0;
  let timer = 0;
  const observer = new ResizeObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (output.clientWidth && Math.abs(output.clientWidth - width) >= 8) refresh();
    }, RESIZE_DELAY);
  });
  observer.observe(output);

  function show(data, { query }) {
    sync(toolbar, { query });
    namespaceOptions(namespaces.querySelector("select"), data.allNamespaces, query.namespace);
    const names = new Map(data.nodes.map((node) => [node.id, nodeName(node)]));
    const sentences = summaryOf(data, names, query);
    if (summarized !== JSON.stringify(sentences)) {
      summarized = JSON.stringify(sentences);
      replace(summary, sentences.map((each) => (typeof each === "string" ? each : h("a", { href: each.href, "data-key": each.text }, each.text))));
    }
    if (!data.nodes.length) {
      const isFiltered = query.only || query.namespace;
      replace(output, summary, empty(isFiltered ? "Nothing matches the filters" : "There are no workloads and services", isFiltered ? "" : "Apply Pods and Services to see them here."));
      return;
    }
    const units = new Map(data.nodes.map((node) => [node.id, unit(node)]));
    for (const edge of data.edges) edge.unit = units.get(edge.from);
    const isDim = dimmer(data, names, query);
    const isNarrow = width < NARROW;
    const main = isNarrow ? parts.list : data.isMatrix ? parts.matrix : parts.drawing;
    main.update(data, names, isDim, query);
    if (!isNarrow) parts.table.update(data, names);
    const shown = isNarrow ? [summary, main.element] : [summary, main.element, parts.legend, parts.table.element];
    if (shown.some((element, index) => output.children[index] !== element)) replace(output, shown);
  }

  return {
    ...view,
    load: ({ query }) => {
      width = output.clientWidth || width;
      return get("map", { width: String(width), opened: query.opened, namespace: query.namespace, node: query.node, only: query.only, search: query.search });
    },
    isVolatile: (data) => !data.current,
    show,
  };
}

/** Return a function that says whether nodes, by their IDs, match neither the search nor the selected node. */
function dimmer(data, names, query) {
  const linked = new Set(data.edges.flatMap((edge) => [edge.from, edge.to]));
  return (ids) => {
    if (query.node && !ids.some((id) => id === query.node || linked.has(id))) return true;
    return Boolean(query.search) && !ids.some((id) => matches(names.get(id), query.search));
  };
}

/** Return the sentences above the map. One with `href` is a link. */
function summaryOf(data, names, query) {
  const { search, only = "" } = query;
  const isClosed = data.namespaces.some((box) => !box.open);
  const isObserved = data.edges.some((edge) => edge.observed);
  const shown = SHOWN[only || (isObserved || data.unusedEdges ? "" : "possible")];
  const what = query.node ? `Possible connections of ${names.get(query.node) ?? query.node}` : shown;
  const showAll = { text: "show all", href: url("map", "", { ...query, only: "possible" }) };
  const back = { text: "Back to all namespaces", href: url("map", "", { ...query, opened: "", namespace: "", node: "", search: "" }) };
  return [
    search && !data.matches ? "Nothing matches the search. " : "",
    search && isClosed && data.matches > MAX_OPENED ? `${data.matches} matches: type more to open their namespaces. ` : "",
    `${data.isMatrix ? "Connections between namespaces" : what}: ${tally(data.edges) || "none"}.`,
    data.moreEdges ? ` ${count(data.moreEdges, "further one")} not shown: choose a namespace.` : "",
    ...(data.unusedEdges ? [` ${count(data.unusedEdges, "possible one")} without traffic not shown: select a workload or a service, or `, showAll, "."] : []),
    isObserved ? (data.isMatrix ? " Numbers are requests per minute." : "") : " No observed traffic.",
    data.isMatrix ? " Select a namespace or a symbol to see workloads and services." : "",
    ...(data.isLarge && !data.isMatrix ? [" ", back] : []),
    !data.isMatrix && data.edges.length > DENSE ? " Select a workload or a service to see only its connections." : "",
    data.current ? "" : " Computing the latest state.",
  ].filter(Boolean);
}
