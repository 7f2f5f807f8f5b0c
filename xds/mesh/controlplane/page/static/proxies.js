// The view of proxies: their state in the words of `xds status`, and one proxy with its configuration.

import { get } from "./api.js";
import { badge, count, elapsed, empty, h, replace } from "./dom.js";
import { url } from "./route.js";
import { table } from "./table.js";
import { choice, frame, matches, namespaceOptions, search, sync } from "./toolbar.js";

export const title = "Proxies";
export const topics = ["proxies"];

const KINDS = { synced: "good", waiting: "wait", rejected: "bad", "not connected": "bad", "not connected here": "off" };

export function create(route, refresh) {
  return route.argument ? createProxy(route, refresh) : createList(route, refresh);
}

// --- all proxies ---------------------------------------------------------------------------------------------

function createList(route, refresh) {
  const state = {};
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(
    search(route, "Search proxies"),
    namespaces,
    choice(route, "state", "State", [["", "All"], ["unsynced", "Not synced"], ["rejected", "Rejected"], ["not connected", "Not connected"]]),
  );
  return {
    ...view,
    load: () => get("proxies"),
    isVolatile: () => true,
    show(data, { query }) {
      sync(toolbar, { query });
      const all = rowsOf(data);
      namespaceOptions(namespaces.querySelector("select"), all.map((row) => row.namespace).sort(), query.namespace);
      const rows = all.filter(
        (row) =>
          (!query.namespace || row.namespace === query.namespace) &&
          (!query.state || (query.state === "unsynced" ? row.state !== "synced" : row.state.startsWith(query.state))) &&
          matches(`${row.name} ${row.status} ${row.agent}`, query.search),
      );
      replace(
        output,
        h("p", { class: "summary", role: "status" }, summary(all)),
        rows.length
          ? table("Proxies", columns, rows, state, () => refresh())
          : empty(all.length ? "No proxy matches the filters" : "No proxy is connected", all.length ? "" : "Start a sidecar with the bootstrap that xds bootstrap prints."),
      );
    },
  };
}

function rowsOf(data) {
  const connected = data.proxies.map((proxy) => ({
    ...proxy,
    name: proxy.pod ? `${proxy.pod}.${proxy.namespace}` : proxy.nodeId,
    agent: `${proxy.agent} ${proxy.agentVersion}`.trim(),
    connected: elapsed(proxy.streams[0]?.connectedAt, data.time),
    since: proxy.streams[0]?.connectedAt ?? "",
  }));
  const absent = data.notConnected;
  const state = absent.mayBeOnOtherReplica ? "not connected here" : "not connected";
  const others = absent.pods.map((pod) => ({
    name: `${pod.pod}.${pod.namespace}`,
    namespace: pod.namespace,
    state,
    status: pod.since ? `last stream ended ${elapsed(pod.since, data.time)} ago` : "never connected",
    agent: "",
    certificate: "-",
    connected: "-",
    since: "",
    words: {},
  }));
  return [...connected, ...others];
}

const columns = [
  { title: "Proxy", value: (row) => `${row.namespace} ${row.name}`, cell: (row) => (row.nodeId ? h("a", { href: url("proxies", row.nodeId), "data-key": row.nodeId }, row.name) : row.name) },
  { title: "State", value: (row) => row.state, cell: (row) => badge(KINDS[row.state], row.state) },
  { title: "Status", value: (row) => row.status, cell: (row) => h("span", { class: "status" }, row.status) },
  { title: "Version", value: (row) => row.agent, cell: (row) => row.agent || "-" },
  { title: "Certificate", value: (row) => row.certificateExpiresAt ?? "", cell: (row) => (row.certificate === "-" ? "-" : row.certificate === "expired" ? badge("bad", "expired") : `${row.certificate} left`) },
  { title: "Connected", value: (row) => row.since, cell: (row) => row.connected },
];

function summary(rows) {
  const states = Object.keys(KINDS).map((state) => [rows.filter((row) => row.state === state).length, state]);
  return states.filter(([number]) => number).map(([number, state]) => `${number} ${state}`).join(", ") || "No proxies";
}

// --- one proxy -----------------------------------------------------------------------------------------------

function createProxy(route, refresh) {
  const proxy = route.argument;
  const state = {};
  const types = h("div", {});
  const { view, toolbar, output: resources } = frame(
    search(route, "Search resources"),
    choice(route, "unsynced", "Show", [["", "All resources"], ["true", "Not synced"]]),
  );
  const back = h("p", {}, h("a", { href: "#/proxies", "data-key": "back" }, "← All proxies"));
  return {
    ...view,
    element: h("div", {}, back, types, toolbar, resources),
    load: async () => {
      const [status, config] = await Promise.all([get("proxies", { proxy, unsynced: "true" }), get("config", { proxy })]);
      return { status, config };
    },
    isVolatile: () => true,
    show({ status, config }, { query }) {
      sync(toolbar, { query });
      replace(types, status.proxies.map((each) => facts(each, status.time)));
      const rows = config.resources.filter((row) => matches(`${row.type} ${row.name} ${row.sources}`, query.search) && (!query.unsynced || row.state !== "synced"));
      replace(
        resources,
        h("h2", {}, "Configuration"),
        h("p", { class: "summary", role: "status" }, count(rows.length, "resource"), config.moreResources ? `, ${config.moreResources} more are not listed` : ""),
        rows.length ? table("Resources", resourceColumns(proxy, query), rows, state, () => refresh()) : empty("No resource matches the filters"),
      );
    },
  };
}

function facts(proxy, now) {
  return [
    h("h2", {}, proxy.pod ? `${proxy.pod}.${proxy.namespace}` : proxy.nodeId),
    h(
      "dl",
      { class: "facts" },
      [
        ["State", badge(KINDS[proxy.state], proxy.state)],
        ["Status", proxy.status],
        ["Node ID", h("code", {}, proxy.nodeId)],
        ["Version", `${proxy.agent} ${proxy.agentVersion}`],
        ["Certificate", proxy.certificate === "-" ? "none from this control plane" : `expires in ${proxy.certificate}`],
        ["Connected", proxy.streams.map((stream) => `${elapsed(stream.connectedAt, now)} from ${stream.peer}`).join(", ")],
      ].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    table(
      "Types",
      [
        { title: "Type", cell: (row) => row.type },
        { title: "Synced", cell: (row) => `${row.resources.synced} of ${row.resources.synced + row.resources.stale + row.resources.notSent + row.resources.error}` },
        { title: "Status", cell: (row) => row.status },
        { title: "Caused by", cell: (row) => row.rejection?.causes?.join(", ") || "-" },
      ],
      proxy.streams.flatMap((stream) => stream.types.map((kind) => ({ ...kind, type: kind.typeUrl.split(".").at(-1) }))),
      {},
      () => {},
    ),
  ];
}

function resourceColumns(proxy, query) {
  return [
    { title: "Type", value: (row) => row.type, cell: (row) => row.type },
    {
      title: "Name",
      value: (row) => row.name,
      cell: (row) => h("a", { href: url("proxies", proxy, { ...query, type: row.type, name: row.name }), "data-key": `${row.type} ${row.name}` }, row.name),
    },
    { title: "State", value: (row) => row.state, cell: (row) => badge({ synced: "good", rejected: "bad" }[row.state] ?? "wait", row.state) },
    { title: "Made from", value: (row) => row.sources.join(), cell: (row) => row.sources.slice(0, 3).join(", ") + (row.sources.length > 3 ? ` and ${row.sources.length - 3} more` : "") || "-" },
  ];
}
