// The view of rollouts: transitions between modes, their phase, and what they wait for.

import { get } from "./api.js";
import { badge, count, duration, elapsed, empty, h, replace } from "./dom.js";
import { table } from "./table.js";
import { choice, frame, matches, namespaceOptions, search, sync } from "./toolbar.js";

export const title = "Rollouts";
export const topics = ["rollouts"];

const WAITING_FOR = { LISTENER: "its own sidecar", CLIENTS: "clients", REPLICAS: "replicas" };

export function create(route, refresh) {
  const state = { ports: {}, rules: {}, finished: {} };
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(search(route, "Search rollouts"), namespaces);
  return {
    ...view,
    load: () => get("rollouts"),
    isVolatile: (data) => data.services.length + data.rules.length > 0,
    show(data, { query }) {
      sync(toolbar, { query });
      const all = [...data.services, ...data.rules];
      const known = [...all, ...data.finished].map((each) => each.namespace).sort();
      namespaceOptions(namespaces.querySelector("select"), known, query.namespace);
      const isShown = (row, text) => (!query.namespace || row.namespace === query.namespace) && matches(text, query.search);
      const ports = data.services
        .flatMap((service) => service.waiting.map((port) => ({ ...port, namespace: service.namespace, service: service.service })))
        .filter((row) => isShown(row, `${row.service}.${row.namespace} ${row.pod} ${row.clients}`));
      const finished = data.finished.filter((row) => isShown(row, `${row.services} ${row.pod}.${row.namespace}`));
      const rules = data.rules.filter((row) => isShown(row, `${row.name}.${row.namespace} ${row.host} ${row.clients}`));
      replace(
        output,
        h("h2", {}, "In progress"),
        ports.length ? [h("h3", {}, "Endpoints"), table("Endpoints in transition", portColumns(data.time), ports, state.ports, () => refresh())] : "",
        rules.length ? [h("h3", {}, "DestinationRules"), table("DestinationRules in transition", ruleColumns(data.time), rules, state.rules, () => refresh())] : "",
        ports.length + rules.length
          ? ""
          : empty(all.length ? "No rollout matches the filters" : "No rollout is in progress", all.length ? "" : "All sidecars have the modes that policies ask for."),
        h("h2", {}, "Finished within the last hour"),
        finished.length
          ? table("Finished transitions", finishedColumns(data.time), finished, state.finished, () => refresh())
          : h("p", { class: "note" }, data.finished.length ? "No finished transition matches the filters." : "None."),
        h(
          "p",
          { class: "note" },
          `Since the control plane started: ${count(data.plaintextDisabled, "port")} stopped accepting plaintext, ${count(data.skipped, "lagging proxy or replica").replace("proxy or replicas", "proxies or replicas")} skipped.`,
        ),
      );
    },
  };
}

function portColumns(now) {
  return [
    { title: "Service", value: (row) => `${row.namespace}.${row.service}`, cell: (row) => `${row.service}.${row.namespace}` },
    { title: "Endpoint", value: (row) => row.pod, cell: (row) => h("code", {}, `${row.pod}:${row.port}`) },
    { title: "To", value: (row) => row.desiredMode, cell: (row) => row.desiredMode },
    { title: "Phase", value: (row) => row.phase, cell: (row) => (row.skipped ? badge("bad", `${phase(row)}, skipped`) : badge("wait", phase(row))) },
    { title: "Waits for", value: (row) => row.waitingFor, cell: (row) => [h("p", {}, [WAITING_FOR[row.waitingFor] ?? row.waitingFor, names(row)].filter(Boolean).join(": ")), row.rejection ? h("p", { class: "bad-text" }, `Rejected: ${row.rejection}`) : ""] },
    { title: "Since", value: (row) => row.since ?? "", cell: (row) => elapsed(row.since, now) },
  ];
}

function finishedColumns(now) {
  return [
    { title: "Service", value: (row) => row.services.join(), cell: (row) => row.services.join(", ") || "-" },
    { title: "Endpoint", value: (row) => `${row.namespace} ${row.pod}`, cell: (row) => h("code", {}, `${row.pod}:${row.port}`) },
    { title: "Change", value: (row) => row.toMode, cell: (row) => `${row.fromMode} → ${row.toMode}` },
    { title: "Result", value: (row) => String(row.skipped), cell: (row) => (row.skipped ? badge("bad", "skipped lagging proxies") : badge("good", "finished")) },
    { title: "Took", value: (row) => milliseconds(row), cell: (row) => [seconds(milliseconds(row) / 1000), h("p", { class: "note" }, phases(row))] },
    { title: "Finished", value: (row) => row.finishedAt, cell: (row) => `${elapsed(row.finishedAt, now)} ago` },
  ];
}

function milliseconds(row) {
  return Date.parse(row.finishedAt) - Date.parse(row.startedAt);
}

function phases(row) {
  return ["expand", "migrate", "contract"].filter((name) => row[name]).map((name) => `${name} ${seconds(parseFloat(row[name]))}`).join(", ");
}

/** Return a number of seconds: most phases take less than one. */
function seconds(value) {
  return value < 10 ? `${value.toFixed(1)}s` : duration(Math.round(value));
}

function ruleColumns(now) {
  return [
    { title: "Rule", value: (row) => `${row.namespace}.${row.name}`, cell: (row) => [h("code", {}, `${row.namespace}/${row.name}`), ` for ${row.host}`] },
    { title: "State", value: (row) => String(row.held), cell: (row) => (row.skipped ? badge("bad", "skipped") : badge("wait", row.held ? "held until its servers accept it" : "clients apply it")) },
    { title: "Waits for", cell: (row) => [names(row) || "-", row.rejection ? h("p", { class: "bad-text" }, `Rejected: ${row.rejection}`) : ""] },
    { title: "Since", value: (row) => row.since ?? "", cell: (row) => elapsed(row.since, now) },
  ];
}

function phase(row) {
  return row.phase.toLowerCase();
}

function names(row) {
  const all = [...row.clients, ...(row.replicas ?? [])];
  return all.join(", ") + (row.moreClients ? ` and ${row.moreClients} more` : "");
}
