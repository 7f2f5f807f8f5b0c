// The view of access: who called each workload, the AuthorizationPolicy that allows that and nothing else, and what
// today's policies allow that was not used.

import { get } from "./api.js";
import { badge, count, duration, empty, h, replace } from "./dom.js";
import { table } from "./table.js";
import { frame, choice, matches, namespaceOptions, search, sync } from "./toolbar.js";

export const title = "Access";
export const topics = ["access"];

export function create(route, refresh) {
  const state = {};
  const unusedState = {};
  const opened = new Set(); // workloads whose policies are shown
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(
    search(route, "Search workloads and clients"),
    namespaces,
    choice(route, "rows", "Show", [["", "All workloads"], ["policies", "Workloads with a new policy"]]),
  );
  return {
    ...view,
    load: () => get("access"),
    show(data, { query }) {
      sync(toolbar, { query });
      namespaceOptions(namespaces.querySelector("select"), data.rows.map((row) => row.namespace), query.namespace);
      const rows = data.rows
        .filter((row) => !query.namespace || row.namespace === query.namespace)
        .filter((row) => row.policy || query.rows !== "policies")
        .filter((row) => matches(`${row.workload} ${row.policy ?? ""} ${(row.rules ?? []).flatMap((rule) => rule.clients).join(" ")}`, query.search));
      const policies = rows.filter((row) => row.policy).map((row) => row.policy);
      replace(
        output,
        h("p", { class: "summary", role: "status" }, `New policies for ${policies.length} of ${count(rows.length, "workload")}, from the traffic of the last ${duration(data.seconds)} `, policies.length ? copyButton(`${data.comments.join("\n")}\n${policies.join("\n---\n")}\n`) : ""),
        data.enabled ? data.gaps.map((gap) => h("p", {}, badge("warn", "incomplete"), ` ${gap}`)) : h("p", {}, badge("bad", "observation is disabled"), " Start xds serve with --observe=true."),
        rows.length ? table("Workloads", columns(data.accounts, opened), rows, state, () => refresh()) : empty(data.rows.length ? "Nothing matches the filters" : "There are no pods with a sidecar", ""),
        unused(data, query, unusedState, refresh),
        h("p", { class: "note" }, "The new policies deny what was not observed. Check each client: its own sidecar reports what it calls with mutual TLS. Before you apply the policies, save them to a file, and run xds plan -f FILE --replay 7d."),
      );
    },
  };
}

/** Return a button that copies a text. A browser allows that only on localhost and over TLS. */
function copyButton(text) {
  async function copy(event) {
    const button = event.currentTarget;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not allow this page to copy: use xds generate";
    }
  }
  return h("button", { type: "button", "data-key": "copy", onclick: copy }, "Copy as YAML");
}

/** Return the access that ALLOW policies give and that was not used. */
function unused(data, query, state, refresh) {
  const rows = data.unused
    .filter((row) => !query.namespace || row.namespaces.includes(query.namespace))
    .filter((row) => matches(`${row.policy} ${row.servers.join(" ")} ${row.unusedBy}`, query.search));
  if (!rows.length) return "";
  const isKnown = data.enabled && !data.gaps.length;
  const verb = isKnown ? "used" : "observed";
  const columns = [
    { title: "Policy", value: (row) => row.policy, cell: (row) => h("strong", {}, `${row.policy} rules[${row.rule}]`) },
    { title: "Servers", cell: (row) => h("ul", { class: "clients" }, row.servers.map((server) => h("li", {}, server))) },
    { title: isKnown ? "Not used by" : "Not observed from", cell: (row) => [row.isUsed ? "" : badge("warn", `not ${verb} at all`), ` ${row.unusedBy}`] },
  ];
  return [h("h2", {}, `Access that was not ${verb}`), table("Unused access", columns, rows, state, () => refresh())];
}

function columns(accounts, opened) {
  return [
    { title: "Workload", value: (row) => row.workload, cell: (row) => h("strong", {}, row.workload) },
    { title: "Allowed clients", cell: (row) => (row.policy ? row.rules.map(allowed) : "-") },
    { title: "New policy", cell: (row) => (row.policy ? proposal(row, accounts, opened) : h("span", { class: "note" }, `none: ${row.reason}`)) },
  ];
}

function allowed({ ports, clients, moreClients, isOpen }) {
  return [
    h("p", { class: "note" }, `port${ports.length === 1 ? "" : "s"} ${ports.join(", ")}`),
    isOpen ? h("p", {}, badge("warn", "all clients"), " because some call it without mutual TLS:") : "",
    h("ul", { class: "clients" }, clients.map((client) => h("li", {}, client)), moreClients ? h("li", {}, `and ${moreClients} more`) : ""),
  ];
}

function proposal(row, accounts, opened) {
  const isOpen = row.rules.some((rule) => rule.isOpen);
  const effect = isOpen ? "" : h("p", {}, badge("denied", `denies ${row.denied} of ${count(accounts, "service account")}`), " and all clients without mutual TLS");
  const toggle = (event) => (event.currentTarget.open ? opened.add(row.workload) : opened.delete(row.workload));
  return [
    effect,
    h("details", { open: opened.has(row.workload), ontoggle: toggle }, h("summary", { "data-key": `policy ${row.workload}` }, "Policy"), h("pre", { tabindex: "0" }, row.policy)),
  ];
}
