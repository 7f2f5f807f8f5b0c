// The view of problems: objects that are rejected or have no effect, certificates and replicas.

import { get } from "./api.js";
import { badge, count, elapsed, empty, h, replace } from "./dom.js";
import { table } from "./table.js";
import { choice, frame, matches, namespaceOptions, search, sync } from "./toolbar.js";

export const title = "Problems";
export const topics = ["problems"];

export function create(route, refresh) {
  const state = {};
  const namespaces = choice(route, "namespace", "Namespace", [["", "All"]]);
  const { view, toolbar, output } = frame(
    search(route, "Search problems"),
    namespaces,
    choice(route, "notices", "Show", [["", "Problems"], ["true", "Problems and notices"]]),
  );
  return {
    ...view,
    load: ({ query }) => get("problems", { notices: query.notices }),
    show(data, { query }) {
      sync(toolbar, { query });
      const known = data.problems.map((problem) => namespaceOf(problem.object)).filter(Boolean).sort();
      namespaceOptions(namespaces.querySelector("select"), known, query.namespace);
      const rows = data.problems.filter(
        (problem) =>
          (!query.namespace || namespaceOf(problem.object) === query.namespace) &&
          matches(`${problem.place} ${problem.object} ${problem.what} ${problem.hint}`, query.search),
      );
      replace(
        output,
        rows.length
          ? [
              h("p", { class: "summary", role: "status" }, count(rows.length + data.moreProblems, "problem"), data.moreProblems ? `, the first ${rows.length} are listed` : ""),
              table("Problems", columns(data.time), rows, state, () => refresh()),
            ]
          : empty(data.problems.length ? "No problem matches the filters" : "No problems", data.problems.length ? "" : "All objects are valid and have an effect. Certificates are renewed."),
      );
    },
  };
}

function columns(now) {
  return [
    { title: "Kind", value: (row) => String(row.notice), cell: (row) => (row.notice ? badge("off", "notice") : badge("bad", "problem")) },
    { title: "Place", value: (row) => row.place, cell: (row) => h("code", { class: "path" }, row.place) },
    { title: "Problem", value: (row) => row.what, cell: (row) => [h("p", {}, row.what), row.servedVersion ? h("p", { class: "note" }, `Version ${row.servedVersion} stays in use`) : ""] },
    { title: "What to do", cell: (row) => row.hint || "-" },
    { title: "Since", value: (row) => row.since ?? "", cell: (row) => elapsed(row.since, now) },
  ];
}

function namespaceOf(object) {
  const name = object.split(" ")[1] ?? "";
  return name.includes("/") ? name.split("/")[0] : "";
}
