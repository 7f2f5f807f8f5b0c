// Shows the view that the URL names, and keeps it up to date.

import * as access from "./access.js";
import { ApiError, get, listen } from "./api.js";
import { empty, h, replace } from "./dom.js";
import * as map from "./map.js";
import * as migration from "./migration.js";
import { closePanel, updatePanel } from "./panel.js";
import * as problems from "./problems.js";
import * as proxies from "./proxies.js";
import * as rollouts from "./rollouts.js";
import { change, current } from "./route.js";

// A view has a title, the names of the events that concern it, and `create(route, refresh)`, which returns
// { element, load(route), show(data, route), isVolatile(data) }.
const views = { map, migration, access, rollouts, proxies, problems };
const VOLATILE_INTERVAL = 5000; // milliseconds
const MAX_LOAD = 0.1; // share of the time in which changes cause loads: the server limits each client's CPU time

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const banner = document.getElementById("banner");
const problemCount = document.getElementById("problem-count");

let shown = null; // { name, argument, view, data }
let isLoading = false;
let mustReload = false; // the user has changed the view meanwhile
let mustReloadSoon = false; // data has changed meanwhile
let timer = 0;
let notBefore = 0; // when a change may cause the next load

function navigate() {
  const route = current();
  const module = views[route.view] ?? map;
  if (!shown || shown.module !== module || shown.argument !== route.argument) {
    const isFirst = shown === null;
    const view = module.create(route, refresh);
    shown = { module, argument: route.argument, view, data: null };
    document.title = `${module.title} - xds`;
    for (const link of document.querySelectorAll("#nav a")) {
      const isCurrent = link.hash === `#/${module === map ? "map" : route.view}`;
      if (isCurrent) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    main.setAttribute("aria-busy", "true");
    main.replaceChildren(h("h1", {}, module.title), view.element);
    if (!isFirst) main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  refresh();
  updatePanel(route);
}

/** Load the data of the view after a change, soon. */
function refreshSoon() {
  if (isLoading) {
    mustReloadSoon = true;
    return;
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, Math.max(0, notBefore - performance.now()));
}

/** Load the data of the view, and show it. Further calls meanwhile cause one more load. */
async function refresh() {
  if (isLoading) {
    mustReload = true;
    return;
  }
  isLoading = true;
  mustReload = mustReloadSoon = false;
  clearTimeout(timer);
  const target = shown;
  const startedAt = performance.now();
  try {
    const data = await target.view.load(current());
    if (target === shown) {
      target.data = data;
      target.view.show(data, current());
      main.removeAttribute("aria-busy");
      if (target.view.isVolatile?.(data)) timer = setTimeout(refresh, VOLATILE_INTERVAL);
    }
  } catch (error) {
    if (!(error instanceof ApiError || error instanceof TypeError)) throw error; // TypeError: fetch got no response
    if (target === shown) {
      if (error instanceof ApiError) {
        main.removeAttribute("aria-busy");
        if (!error.isThrottled || !target.data) target.view.fail(empty("This view cannot be shown", error.message));
      } else if (!target.data) {
        main.removeAttribute("aria-busy");
        target.view.fail(empty("This view cannot be shown", "The control plane cannot be reached. The page connects again as soon as possible."));
      }
      timer = setTimeout(refresh, VOLATILE_INTERVAL);
    }
  } finally {
    isLoading = false;
    const now = performance.now();
    notBefore = now + (now - startedAt) * (1 / MAX_LOAD - 1);
    if (mustReload || target !== shown) refresh();
    else if (mustReloadSoon) refreshSoon();
  }
}

/** Show the number of problems beside the name of their view. It is left as it is if it cannot be loaded. */
async function countProblems() {
  const data = await get("problems").catch(() => null);
  if (!data) return;
  const number = data.problems.length + data.moreProblems;
  problemCount.textContent = String(number);
  problemCount.hidden = !number;
}

function setConnected(isConnected) {
  connection.textContent = isConnected ? "Live" : "Disconnected";
  connection.className = isConnected ? "live" : "lost";
  document.body.classList.toggle("stale", !isConnected);
  if (isConnected) banner.hidden = true;
  else if (banner.hidden) {
    const time = new Date().toLocaleTimeString("en-GB");
    replace(banner, `The control plane cannot be reached since ${time}. The page shows the last known state, and connects again as soon as possible.`);
    banner.hidden = false;
  }
}

listen({
  onOpen: () => {
    setConnected(true);
    refresh();
    countProblems();
    updatePanel(current());
  },
  onLost: () => setConnected(false),
  onChange: (names) => {
    if (names.some((name) => shown.module.topics.includes(name))) refreshSoon();
    if (names.some((name) => problems.topics.includes(name))) countProblems();
    updatePanel(current());
  },
});

document.getElementById("skip").addEventListener("click", () => main.focus());
addEventListener("hashchange", navigate);
addEventListener("keydown", (event) => {
  const isTyping = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    main.querySelector("input[type=search]")?.focus();
  } else if (event.key === "Escape") {
    if (isTyping && event.target.value && event.target.type === "search") change({ search: "" });
    else closePanel();
  }
});
navigate();
