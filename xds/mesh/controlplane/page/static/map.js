// The map: workloads on the left, services on the right, and what their connections use.

import { get } from "./api.js";
import { list, listing, nodeName, tally, unit } from "./connections.js";
import { drawing, legend } from "./drawing.js";
import { count, empty, h, replace } from "./dom.js";
import { choice, frame, matches, namespaceOptions, search, sync } from "./toolbar.js";

export const title = "Map";
export const topics = ["map"];

const NARROW = 600; // width in pixels below which the connections are a list
const DENSE = 100; // number of edges from which single ones are hard to follow
const MAX_OPENED = 30; // matches of a search up to which their namespaces are opened
const RESIZE_DELAY = 200; // milliseconds

export function create(route, refresh) {
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(
    search(route, "Search workloads and services"),
    namespaces,
    choice(route, "only", "Show", [["", "All connections"], ["problems", "Only problems"], ["plaintext", "Only plaintext"]]),
  );
  const summary = h("p", { class: "summary", role: "status" });
  const parts = { drawing: drawing(), list: list(), table: listing(refresh), legend: legend() };
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
    const text = summaryOf(data, query);
    if (summary.textContent !== text) summary.textContent = text;
    if (!data.nodes.length) {
      const isFiltered = query.only || query.namespace;
      replace(output, summary, empty(isFiltered ? "Nothing matches the filters" : "There are no workloads and services", isFiltered ? "" : "Apply Pods and Services to see them here."));
      return;
    }
    const names = new Map(data.nodes.map((node) => [node.id, nodeName(node)]));
    const units = new Map(data.nodes.map((node) => [node.id, unit(node)]));
    for (const edge of data.edges) edge.unit = units.get(edge.from);
    const isDim = dimmer(data, names, query);
    const isNarrow = width < NARROW;
    if (isNarrow) parts.list.update(data, names, isDim);
    else {
      parts.drawing.update(data, names, query, isDim);
      parts.table.update(data, names);
    }
    const shown = isNarrow ? [summary, parts.list.element] : [summary, parts.drawing.element, parts.legend, parts.table.element];
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

function summaryOf(data, { search }) {
  const isClosed = data.namespaces.some((box) => !box.open);
  return [
    search && !data.matches ? "Nothing matches the search. " : "",
    search && isClosed && data.matches > MAX_OPENED ? `${data.matches} matches: type more to open their namespaces. ` : "",
    `Possible connections: ${tally(data.edges) || "none"}.`,
    data.moreEdges ? ` ${count(data.moreEdges, "further one")} not shown: choose a namespace.` : "",
    data.edges.some((edge) => edge.observed) ? "" : " No observed traffic.",
    data.edges.length > DENSE ? " Select a workload or a service to see only its connections." : "",
    data.current ? "" : " Computing the latest state.",
  ].join("");
}
