// Tables that can be sorted, and that show a page of rows at a time.

import { h } from "./dom.js";

const PAGE_SIZE = 200;
const collator = new Intl.Collator("en", { numeric: true });

/**
 * Return a table.
 *
 * columns: { title, cell(row), value(row) }; without a value, the column cannot be sorted.
 * rows: the rows in their default order. state: what the table remembers: column, descending and page.
 * onchange: called when the state has changed.
 */
export function table(caption, columns, rows, state, onchange) {
  const sorted = sort(columns, rows, state);
  const pages = Math.max(1, Math.ceil(rows.length / PAGE_SIZE));
  const page = Math.min(state.page ?? 0, pages - 1);
  const shown = sorted.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  return h(
    "div",
    { class: "table" },
    h(
      "table",
      { role: "table" },
      h("caption", { class: "hidden-text" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((column) => heading(column, state, onchange)))),
      h(
        "tbody",
        { role: "rowgroup" },
        shown.map((row) =>
          h(
            "tr",
            { role: "row", class: row.className },
            columns.map((column) => h("td", { role: "cell", "data-title": column.title }, h("div", {}, column.cell(row)))),
          ),
        ),
      ),
    ),
    pages > 1 ? pager(page, pages, rows.length, state, onchange) : "",
  );
}

function sort(columns, rows, state) {
  const column = columns.find((each) => each.title === state.column);
  if (!column?.value) return rows;
  const sorted = rows.toSorted((a, b) => collator.compare(column.value(a), column.value(b)));
  return state.descending ? sorted.reverse() : sorted;
}

function heading(column, state, onchange) {
  const isSorted = state.column === column.title;
  const direction = isSorted ? (state.descending ? "descending" : "ascending") : null;
  if (!column.value) return h("th", { role: "columnheader", scope: "col" }, column.title);
  const arrow = h("span", { "aria-hidden": "true", class: "arrow" }, isSorted ? (state.descending ? "▼" : "▲") : "");
  function click() {
    state.descending = isSorted && !state.descending;
    state.column = column.title;
    onchange();
  }
  return h(
    "th",
    { role: "columnheader", scope: "col", "aria-sort": direction },
    h("button", { type: "button", "data-key": `sort ${column.title}`, onclick: click }, column.title, arrow),
  );
}

function pager(page, pages, total, state, onchange) {
  function turn(to) {
    state.page = to;
    onchange();
  }
  const last = Math.min(total, (page + 1) * PAGE_SIZE).toLocaleString("en");
  const text = `${(page * PAGE_SIZE + 1).toLocaleString("en")} to ${last} of ${total.toLocaleString("en")}`;
  return h(
    "p",
    { class: "pager" },
    h("button", { type: "button", "data-key": "previous", disabled: page === 0, onclick: () => turn(page - 1) }, "Previous"),
    h("span", {}, text),
    h("button", { type: "button", "data-key": "next", disabled: page === pages - 1, onclick: () => turn(page + 1) }, "Next"),
  );
}
