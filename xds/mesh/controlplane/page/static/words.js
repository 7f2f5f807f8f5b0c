// Words for results and observed traffic.

import { badge, count, duration, h } from "./dom.js";

/** Results of predictions. */
export const RESULTS = { mtls: "mutual TLS", mixed: "partly mutual TLS", plaintext: "plaintext", denied: "denied", fails: "fails" };

/** The badge of each result. */
export const KINDS = { mtls: "good", mixed: "warn", plaintext: "warn", denied: "denied", fails: "bad" };

/** Modes of observed traffic: the badge, and words. */
const MODES = {
  mtls: ["good", "mutual TLS"],
  tls: ["good", "TLS"],
  plaintext: ["warn", "plaintext accepted"],
  refused: ["bad", "plaintext refused"],
};

const RECENT = 60; // seconds

/** Return a mode of observed traffic as a symbol and words. */
export function modeBadge(mode) {
  return badge(...MODES[mode.toLowerCase()]);
}

/** Return a rate as `xds observe` prints it: "<0.1", "2.4" or "1,240". */
export function rate(value) {
  if (value > 0 && value < 0.1) return "<0.1";
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

/** Return the requests per minute of observed traffic in all modes. */
export function total(observed) {
  return Object.values(observed.requestsPerMinute).reduce((sum, value) => sum + value, 0);
}

/** Return observed traffic: the rate of each mode, and when it was last seen. */
export function observedText(observed) {
  if (!observed) return h("span", { class: "note" }, "none");
  const rates = Object.entries(observed.requestsPerMinute).map(([mode, value]) => h("p", {}, modeBadge(mode), ` ${rate(value)} per minute`));
  return [rates, failedText(observed.failedPerHour), deniedText(observed), h("p", { class: "note" }, lastSeen(observed.secondsAgo))];
}

/** Return when traffic was last seen. */
export function lastSeen(secondsAgo) {
  return secondsAgo > RECENT ? `not for ${duration(secondsAgo)}` : `last ${duration(secondsAgo)} ago`;
}

/** Return the modes that were observed, in words, and whether requests fail or are denied: "plaintext refused, requests fail". */
export function observedWords(observed) {
  const modes = Object.keys(observed?.requestsPerMinute ?? {}).map((mode) => MODES[mode][1]);
  return [...modes, observed?.isFailing ? "requests fail" : "", observed?.deniedPerHour ? "requests are denied" : ""].filter(Boolean).join(", ");
}

/** Return how many requests have failed in the last hour; nothing if none. */
export function failedText(number) {
  return Number(number) ? badge("bad", `${count(Number(number), "request")} failed in the last hour`) : "";
}

/** Return how many requests AuthorizationPolicies have denied in the last hour, or would have; nothing if none. */
function deniedText({ deniedPerHour, wouldBeDeniedPerHour }) {
  return [
    deniedPerHour ? h("p", {}, badge("denied", `${count(deniedPerHour, "request")} denied in the last hour`)) : "",
    wouldBeDeniedPerHour ? h("p", {}, badge("denied", `${count(wouldBeDeniedPerHour, "request")} would have been denied in the last hour`)) : "",
  ];
}
