// The panel beside a view: the explanation of a connection, or the content of a resource.

import { get } from "./api.js";
import { badge, count, elapsed, h, objectName, replace, s } from "./dom.js";
import { change, current } from "./route.js";
import { KINDS, RESULTS, failedText, modeBadge, rate } from "./words.js";

const panel = document.getElementById("panel");
const MAX_ENDPOINTS = 5; // endpoints that a result names
const MAX_PROXIES = 10; // sidecars that the panel lists
const BAR_WIDTH = 4; // of a sparkline, in pixels
const CHART_HEIGHT = 36; // in pixels

let shownFor = "";
let opener = null; // data-key of the element that had the focus when the panel was opened

/** Show what the URL asks for: client and service, or type and name; else hide the panel. */
export async function updatePanel(route) {
  const { client, service, type, name } = route.query;
  const key = client && service ? `${client} ${service}` : type && name ? `${route.argument} ${type} ${name}` : "";
  const isNew = key !== shownFor;
  shownFor = key;
  if (!key) {
    if (!panel.hidden) {
      panel.hidden = true;
      document.body.classList.remove("with-panel");
      document.querySelector(`[data-key="${CSS.escape(opener ?? "")}"]`)?.focus();
    }
    return;
  }
  if (isNew) {
    if (panel.hidden) opener = document.activeElement?.dataset.key ?? null;
    panel.hidden = false;
    document.body.classList.add("with-panel");
    replace(panel, header(client ? "Connection" : "Resource"), h("p", { class: "loading" }, "Loading"));
    panel.focus({ preventScroll: true });
  }
  let content;
  try {
    content = client ? explanation(await get("explain", { client, service })) : resource(await get("config", { proxy: route.argument, type, name }), type, name);
  } catch (error) {
    content = [header("Not available"), h("p", {}, error.message)];
  }
  if (shownFor === key) replace(panel, content);
}

/** Close the panel. */
export function closePanel() {
  if (!panel.hidden) change({ client: "", service: "", type: "", name: "" });
}

function header(text) {
  return h("div", { class: "panel-header" }, h("h2", {}, text), h("button", { type: "button", "data-key": "close", "aria-label": "Close", onclick: closePanel }, "✕"));
}

function resource(data, type, name) {
  return [header(`${type} ${name}`), h("p", { class: "note" }, "Private keys and other secrets are redacted."), h("pre", { tabindex: "0", "data-key": "content", "aria-label": "Content" }, JSON.stringify(data.content, null, 2))];
}

// --- the explanation of a connection -------------------------------------------------------------------------

function explanation(data) {
  const ports = Map.groupBy(data.groups, (group) => group.port);
  return [
    header(`${data.client} → ${data.service}`),
    [...ports].map(([port, groups]) => portPart(port, groups)),
    data.ruleTransitions.length ? [h("h3", {}, "DestinationRules in transition"), h("ul", {}, data.ruleTransitions.map((line) => h("li", {}, line)))] : "",
    observed(data),
    sidecars(data),
  ];
}

/** Return what is predicted for a port. Its endpoints can have different results. */
function portPart(port, groups) {
  const total = groups.reduce((sum, group) => sum + group.endpoints.length, 0);
  return h("section", { class: "group", "aria-label": `Port ${port}` }, h("h3", {}, `Port ${port}: predicted`), groups.map((group) => groupPart(group, total)));
}

function groupPart(group, total) {
  const [why, allowed] = group.summary.slice(group.summary.indexOf(": ") + 2).split("; allowed ");
  const outcome = group.reason === "access-denied" ? "denied" : group.outcome;
  const names = group.endpoints.map((endpoint) => endpoint.pod || `${endpoint.address}:${endpoint.port}`);
  const more = names.length > MAX_ENDPOINTS ? ` and ${names.length - MAX_ENDPOINTS} more` : "";
  const share = names.length < total ? `${names.length} of ${total} endpoints: ` : "to ";
  const deciders = [group.client, group.server].map((side) => side && decider(side));
  const isShared = deciders[0] && JSON.stringify(group.client.decidedBy) === JSON.stringify(group.server?.decidedBy);
  return h(
    "div",
    { class: "result" },
    h("p", {}, badge(KINDS[outcome] ?? "off", RESULTS[outcome] ?? outcome), names.length ? ` ${share}${names.slice(0, MAX_ENDPOINTS).join(", ")}${more}` : ""),
    h("p", {}, `Because ${why}.`),
    allowed ? h("p", {}, badge("denied", "conditional"), ` Requests are allowed ${allowed}.`) : "",
    h(
      "dl",
      { class: "sides" },
      side("Client sends", group.client, why, isShared ? "" : deciders[0]),
      side("Server accepts", group.server, why, isShared ? "" : deciders[1]),
      isShared ? h("div", {}, h("dt", {}, "Decided by"), h("dd", {}, deciders[0])) : "",
    ),
    group.differences.length ? [h("h4", {}, "Not in force yet"), h("ul", { class: "differences" }, group.differences.map((line) => h("li", {}, line)))] : "",
  );
}

/** Return what one side does, without the reason that is stated above. */
function side(title, value, why, decidedBy) {
  if (!value) return "";
  const text = value.summary.endsWith(`: ${why}`) ? value.summary.slice(0, -why.length - 2) : value.summary;
  return h("div", {}, h("dt", {}, title), h("dd", {}, text, decidedBy ? h("p", { class: "note" }, "decided by ", decidedBy) : "", overridden(value)));
}

function decider(value) {
  return value.decidedBy ? [objectName(value.decidedBy), value.decidedBy.scope ? ` for ${value.decidedBy.scope}` : ""] : "";
}

function overridden(value) {
  if (!value.overridden.length) return "";
  return h("p", { class: "note" }, "overrides ", value.overridden.slice(0, 5).map((object, index) => [index ? ", " : "", objectName(object)]));
}

function sidecars(data) {
  const servers = new Map(data.groups.flatMap((group) => group.serverProxies).map((proxy) => [proxy.pod, proxy]));
  const rows = [data.clientProxy ? proxyRow("Client", data.clientProxy, data.time) : h("li", {}, `Client ${data.client}: no sidecar`)];
  for (const proxy of [...servers.values()].slice(0, MAX_PROXIES)) rows.push(proxyRow("Server", proxy, data.time));
  const without = data.groups.some((group) => group.endpoints.length && !group.serverProxies.length);
  if (without) rows.push(h("li", {}, servers.size ? "Other endpoints: no sidecar" : "Server: no sidecar"));
  return h("section", { class: "group", "aria-label": "Sidecars" }, h("h3", {}, "What the sidecars have ACKed"), h("ul", { class: "acked" }, rows));
}

function proxyRow(title, proxy, now) {
  const acked = proxy.ackedGeneration === "-1" ? "unknown" : proxy.ackedGeneration;
  return h(
    "li",
    {},
    `${title} ${proxy.pod}: `,
    badge(proxy.synced ? "good" : proxy.mayBeOnOtherReplica ? "off" : "wait", proxy.status),
    h("span", { class: "note" }, ` generation ${acked} of ${proxy.servedGeneration}`, proxy.certificateExpires ? `, certificate expires in ${elapsed(now, proxy.certificateExpires)}` : ""),
  );
}

function observed(data) {
  return h(
    "section",
    { class: "group", "aria-label": "Observed" },
    h("h3", {}, "Observed in the last 24 hours"),
    data.observed.length
      ? data.observed.map((edge) => edge.denial ? deniedPart(edge, data.time) : [
          h("p", {}, modeBadge(edge.mode), ` port ${edge.port}: ${rate(edge.requestsPerMinute)} requests per minute, last ${elapsed(edge.lastSeen, data.time)} ago`),
          failedText(edge.failedPerHour),
          chart(edge.minutes),
        ])
      : h("p", { class: "note" }, "Nothing was reported."),
    data.observed.length ? h("p", { class: "note" }, `From all pods with the service account ${data.observed[0].clientNamespace}/${data.observed[0].client}.`) : "",
  );
}

/** Return what an AuthorizationPolicy denies, or would deny. */
function deniedPart(edge, now) {
  const { rule, method, path, dryRun } = edge.denial;
  const request = `${method ?? ""} ${path ?? ""}`.trim() || "connections";
  const by = rule ? `by ${rule}` : "because no ALLOW rule matches";
  return h("p", {}, badge("denied", dryRun ? "would be denied" : "denied"), ` port ${edge.port}: ${request}, ${by}: ${count(Number(edge.requestsPerDay), "request")}, last ${elapsed(edge.lastSeen, now)} ago`);
}

/** Draw the requests of each of the last 60 minutes. */
function chart(minutes) {
  const peak = Math.max(...minutes);
  const width = BAR_WIDTH * minutes.length;
  const bars = minutes.map((value, index) => (value ? `M${(index + 0.5) * BAR_WIDTH} ${CHART_HEIGHT}v${-Math.max(2, (CHART_HEIGHT * value) / peak)}` : "")).join("");
  const label = peak ? `Requests in each minute of the last hour: at most ${peak.toLocaleString("en")}` : "No requests in the last hour";
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, label),
    s("svg", { viewBox: `0 0 ${width} ${CHART_HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, s("path", { d: `M0 ${CHART_HEIGHT}H${width}M0 0.5H${width}`, class: "axis" }), s("path", { d: bars, class: "bars" })),
    h("div", { class: "scale", "aria-hidden": "true" }, h("span", {}, "60 min ago"), h("span", {}, `top line: ${peak.toLocaleString("en")} per minute`), h("span", {}, "now")),
  );
}

/** Open the explanation of a connection. */
export function explain(client, service) {
  const { query } = current();
  change({ ...query, client, service }, { push: true });
}
