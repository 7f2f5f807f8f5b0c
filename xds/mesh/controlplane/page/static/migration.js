// The view of the migration: how far each namespace and workload is on the way to STRICT.

import { get } from "./api.js";
import { badge, count, elapsed, empty, h, objectName, replace } from "./dom.js";
import { change, url } from "./route.js";
import { table } from "./table.js";
import { choice, frame, matches, namespaceOptions, search, sync } from "./toolbar.js";
import { lastSeen, modeBadge, rate } from "./words.js";

export const title = "Migration";
export const topics = ["migration"];

const MAX_SHOWN = 3; // changes that a row shows without a click

const STAGES = {
  done: ["good", "done"],
  ready: ["good", "ready for STRICT"],
  blocked: ["bad", "STRICT would break"],
  sidecars: ["warn", "needs sidecars"],
  disconnected: ["warn", "sidecars not connected"],
  checking: ["wait", "checking"],
};

const ANSWERS = { locked: ["good", "Locked"], yes: ["good", "Yes"], unsure: ["warn", "Not sure"], no: ["bad", "No"], checking: ["wait", "Checking"] };

export function create(route, refresh) {
  const state = { opened: new Set() }; // opened: keys of rows whose remedies are shown
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(
    search(route, "Search namespaces and workloads"),
    namespaces,
    choice(route, "stage", "Stage", [["", "All"], ...Object.entries(STAGES).map(([name, [, text]]) => [name, text])]),
    choice(route, "rows", "Rows", [["", "Namespaces"], ["all", "Namespaces and workloads"]]),
  );
  return {
    ...view,
    load: () => get("migration"),
    isVolatile: (data) => data.rows.some((row) => row.stage === "checking"),
    show(data, { query }) {
      sync(toolbar, { query });
      namespaceOptions(namespaces.querySelector("select"), data.rows.map((row) => row.namespace), query.namespace);
      const opened = new Set((query.opened ?? "").split(",").filter(Boolean));
      const showsAll = query.rows === "all" || Boolean(query.namespace);
      const rows = data.rows
        .filter((row) => !query.namespace || row.namespace === query.namespace)
        .filter((row) => (!row.workload || showsAll || query.search || opened.has(row.namespace)) && (!query.stage || row.stage === query.stage))
        .filter((row) => matches(`${row.workload}.${row.namespace} ${row.nextStep}`, query.search))
        .map((row) => ({ ...row, className: row.workload ? "child" : "" }));
      const totals = data.rows.filter((row) => !row.workload && (!query.namespace || row.namespace === query.namespace));
      replace(
        output,
        verdict(rows, totals, query),
        totals.length ? progress(totals) : "",
        rows.length ? table("Namespaces and workloads", columns(opened, showsAll, data.observation.enabled, state.opened), rows, state, () => refresh()) : empty(data.rows.length ? "Nothing matches the filters" : "There are no pods", ""),
        h("p", { class: "note" }, "What STRICT would break is predicted from the objects that the control plane knows. Clients outside the mesh are not included."),
        h("p", { class: "note" }, observationNote(data.observation)),
      );
    },
  };
}

/** Return whether the selected namespace or workload can be locked. Without a selection, the table says it. */
function verdict(rows, totals, query) {
  const row = rows.length === 1 ? rows[0] : query.namespace ? totals[0] : null;
  if (!row || !(query.namespace || query.search)) return "";
  return h("p", { class: "verdict", role: "status" }, badge(...ANSWERS[row.verdict.answer]), ` ${row.verdict.text}`);
}

function progress(rows) {
  const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
  const pods = sum("pods");
  const strict = sum("strict");
  const permissive = sum("connected") - strict;
  const away = sum("sidecars") - sum("connected");
  const percent = pods ? Math.floor((100 * strict) / pods) : 0;
  const parts = [
    ["strict", strict, "mutual TLS only"],
    ["sidecar", permissive, "sidecar, still accepts plaintext"],
    ["away", away, "sidecar not connected"],
    ["plain", pods - strict - permissive - away, "no sidecar"],
  ];
  return h(
    "section",
    { class: "progress", "aria-label": "Progress" },
    h("p", { class: "headline" }, h("strong", {}, `${percent} %`), ` of ${count(pods, "pod")} accept mutual TLS only`),
    bar(parts, pods),
    h("ul", { class: "key" }, parts.map(([kind, number, text]) => h("li", {}, h("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), `${text}: ${number}`))),
  );
}

function bar(parts, total) {
  const element = h("div", { class: "bar", "aria-hidden": "true" });
  for (const [kind, number] of parts) {
    const part = h("span", { class: kind });
    part.style.flexGrow = total ? number : 0;
    if (number) element.append(part);
  }
  return element;
}

function columns(opened, showsAll, isObserved, remedies) {
  return [
    { title: "Name", cell: (row) => nameCell(row, opened, showsAll) },
    { title: "Sidecars", cell: (row) => [h("span", { class: "fraction" }, `${row.sidecars} of ${row.pods}`), bar([["strict", row.strict], ["sidecar", row.connected - row.strict], ["away", row.sidecars - row.connected], ["plain", row.pods - row.sidecars]], row.pods)] },
    { title: "Mode", cell: modeCell },
    { title: "Observed plaintext", cell: (row) => observedCell(row, isObserved) },
    { title: "STRICT would break", cell: (row) => breaksCell(row, remedies) },
    { title: "Next step", cell: (row) => [h("p", {}, badge(...STAGES[row.stage])), h("p", {}, row.nextStep)] },
  ];
}

function nameCell(row, opened, showsAll) {
  if (row.workload) return h("span", { class: "indent" }, row.workload);
  const isOpen = opened.has(row.namespace);
  if (showsAll) return h("strong", {}, row.namespace);
  function toggle() {
    const names = new Set(opened);
    if (!names.delete(row.namespace)) names.add(row.namespace);
    change({ opened: [...names].join() });
  }
  return h(
    "button",
    { type: "button", class: "toggle", "aria-expanded": String(isOpen), "data-key": `toggle ${row.namespace}`, onclick: toggle },
    h("span", { "aria-hidden": "true" }, isOpen ? "▾" : "▸"),
    row.namespace,
  );
}

function modeCell(row) {
  const modes = Object.entries(row.modes);
  if (!modes.length) return "no sidecar";
  const text = modes.length === 1 ? modes[0][0] : modes.map(([mode, number]) => `${number} ${mode}`).join(", ");
  return [h("p", {}, text), row.decidedBy.slice(0, 3).map((object) => h("p", { class: "note" }, "by ", objectName(object))), row.decidedBy.length > 3 ? h("p", { class: "note" }, `and ${row.decidedBy.length - 3} more`) : ""];
}

function observedCell(row, isObserved) {
  if (!row.observed.length) return h("span", { class: "note" }, isObserved && row.sidecars ? "none" : "not observed");
  return row.observed.map((seen) => [
    h("p", {}, modeBadge(seen.mode)),
    h("p", {}, `${rate(seen.requestsPerMinute[seen.mode])} per minute, ${lastSeen(seen.secondsAgo)}`),
    h("ul", { class: "clients" }, seen.clients.map((client) => h("li", {}, `from ${client.name}`, client.note ? ` (${client.note})` : "")), seen.moreClients ? h("li", {}, `and ${seen.moreClients} more`) : ""),
  ]);
}

/** Return what the column of observed plaintext includes, and what it may omit. */
function observationNote({ enabled, missingReplicas = [], since, time, dropped }) {
  if (!enabled) return "Observation is disabled (--observe): plaintext is not observed.";
  const kept = 24 * 60 * 60 * 1000; // milliseconds
  const period = Date.parse(time) - Date.parse(since) > kept ? "24h" : elapsed(since, time);
  const parts = [`Observed: plaintext that sidecars reported in the last ${period}.`];
  for (const { replica, reason } of missingReplicas) {
    parts.push(`The traffic of ${replica ? `replica ${replica}` : "other replicas"} is missing: ${reason}.`);
  }
  if (Number(dropped)) parts.push(`${dropped} reports or entries were dropped.`);
  return parts.join(" ");
}

function breaksCell(row, remedies) {
  if (row.breaks === null) return badge("wait", "checking");
  if (!row.breaks.length) return row.sidecars ? "nothing known" : "-";
  const total = row.breaks.length + row.moreBreaks;
  const key = `breaks ${row.namespace} ${row.workload}`;
  const toggle = (event) => (event.currentTarget.open ? remedies.add(key) : remedies.delete(key));
  const more = total > MAX_SHOWN ? `${total - MAX_SHOWN} more, and what to do` : "What to do";
  return [
    h("ul", { class: "breaks" }, row.breaks.slice(0, MAX_SHOWN).map((each) => h("li", {}, breakText(each)))),
    h(
      "details",
      { open: remedies.has(key), ontoggle: toggle },
      h("summary", { "data-key": key }, more),
      h("ul", { class: "breaks" }, row.breaks.map((each) => h("li", {}, breakText(each), h("p", { class: "note" }, each.remedy)))),
      row.moreBreaks ? h("p", { class: "note" }, `and ${row.moreBreaks} more: xds plan lists all`) : "",
      h("p", {}, h("a", { href: url("map", "", { namespace: row.namespace }), "data-key": `map ${key}` }, "Show on the map")),
    ),
  ];
}

function breakText(each) {
  return [h("strong", {}, each.clients), ` → ${each.target}`, each.effect === "breaks" ? "" : ` (${each.effect})`];
}
