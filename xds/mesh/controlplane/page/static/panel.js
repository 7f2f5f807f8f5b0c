// The panel beside a view: the explanation of a connection, or the content of a resource.

import { get } from "./api.js";
import { badge, elapsed, h, objectName, rate, replace, s } from "./dom.js";
import { change, current } from "./route.js";

const panel = document.getElementById("panel");
const RESULTS = { mtls: ["good", "mutual TLS"], plaintext: ["warn", "plaintext"], fails: ["bad", "fails"] };

const OBSERVED = { MTLS: ["good", "mutual TLS"], TLS: ["good", "TLS"], PLAINTEXT: ["warn", "plaintext"], REFUSED: ["bad", "refused"] };

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

function explanation(data) {
  return [
    header(`${data.client} → ${data.service}`),
    observed(data),
    h("p", { class: "note" }, "Predicted from policies and what the control plane serves:"),
    data.groups.map((group) => groupPart(group, data)),
    data.ruleTransitions.length ? [h("h3", {}, "DestinationRules in transition"), h("ul", {}, data.ruleTransitions.map((line) => h("li", {}, line)))] : "",
  ];
}

function observed(data) {
  if (!data.observed.length) return h("p", { class: "note" }, "Observed: nothing was reported in the last 24 hours.");
  return [
    h("h3", {}, "Observed"),
    h(
      "ul",
      {},
      data.observed.map((edge) =>
        h("li", {}, badge(...OBSERVED[edge.mode]), ` port ${edge.port}: ${rate(edge.requestsPerMinute)} req/min, last ${elapsed(edge.lastSeen, data.time)} ago, from ${edge.clientNamespace}/${edge.client}`, spark(edge.minutes)),
      ),
    ),
  ];
}

/** Draw the requests of each of the last 60 minutes. */
function spark(minutes) {
  const most = Math.max(...minutes, 1);
  const bars = minutes.map((value, index) => (value ? `M${index * 2 + 1} 24v${-Math.max(1, Math.round((23 * value) / most))}` : "")).join("");
  const label = `Requests in each minute of the last hour, at most ${most.toLocaleString("en")}`;
  return s("svg", { class: "spark", width: 120, height: 24, role: "img", "aria-label": label }, s("title", {}, label), s("path", { d: "M0 24H120", class: "axis" }), s("path", { d: bars, class: "bars" }));
}

function groupPart(group, data) {
  const endpoints = group.endpoints.map((endpoint) => endpoint.pod || `${endpoint.address}:${endpoint.port}`);
  return h(
    "section",
    { class: "group", "aria-label": `Port ${group.port}` },
    h("h3", {}, `Port ${group.port} `, badge(...(RESULTS[group.outcome] ?? ["off", group.outcome]))),
    h("p", {}, group.summary),
    endpoints.length ? h("p", { class: "note" }, `Endpoints: ${endpoints.slice(0, 5).join(", ")}${endpoints.length > 5 ? ` and ${endpoints.length - 5} more` : ""}`) : "",
    side("Client", group.client),
    side("Server", group.server),
    group.differences.length ? [h("h4", {}, "Not in force yet"), h("ul", { class: "differences" }, group.differences.map((line) => h("li", {}, line)))] : "",
    h("h4", {}, "What the sidecars have ACKed"),
    h("ul", { class: "acked" }, acked("Client", data.clientProxy ? [data.clientProxy] : [], data.time), acked("Server", group.serverProxies, data.time)),
  );
}

function side(title, value) {
  if (!value) return "";
  return [
    h("h4", {}, title),
    h("p", {}, value.summary),
    value.decidedBy ? h("p", { class: "note" }, "Decided by ", objectName(value.decidedBy), value.decidedBy.scope ? ` for ${value.decidedBy.scope}` : "") : "",
    value.overridden.length ? h("p", { class: "note" }, "Overrides ", value.overridden.slice(0, 5).map((object, index) => [index ? ", " : "", objectName(object)])) : "",
  ];
}

function acked(title, proxies, now) {
  if (!proxies.length) return h("li", {}, `${title}: no sidecar`);
  return proxies.slice(0, 10).map((proxy) =>
    h(
      "li",
      {},
      `${title} ${proxy.pod}: `,
      badge(proxy.synced ? "good" : proxy.mayBeOnOtherReplica ? "off" : "wait", proxy.status),
      h("span", { class: "note" }, ` generation ${proxy.ackedGeneration === "-1" ? "unknown" : proxy.ackedGeneration} of ${proxy.servedGeneration}`, proxy.certificateExpires ? `, certificate expires in ${elapsed(now, proxy.certificateExpires)}` : ""),
    ),
  );
}

/** Open the explanation of a connection. */
export function explain(client, service) {
  const { query } = current();
  change({ ...query, client, service }, { push: true });
}
