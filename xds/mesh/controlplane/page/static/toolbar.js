// The filters above a view. Their values are part of the URL.

import { h, replace } from "./dom.js";
import { change } from "./route.js";

/** Return a form of filters, the element below it for the content, and what they contribute to the view. */
export function frame(...filters) {
  const toolbar = h("form", { class: "toolbar", onsubmit: (event) => event.preventDefault() }, filters);
  const output = h("div", { class: "output" }, h("p", { class: "loading" }, "Loading"));
  return { toolbar, output, view: { element: h("div", {}, toolbar, output), fail: (note) => replace(output, note) } };
}

/** Return a search field, which `/` focuses. */
export function search(route, label) {
  const input = h("input", {
    type: "search",
    "data-key": "search",
    "aria-label": label,
    placeholder: `${label}  ( / )`,
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => change({ search: input.value }),
  });
  input.value = route.query.search ?? "";
  return input;
}

/** Return a list of choices: { name, label, options: [[value, text]] }. An empty value is the default. */
export function choice(route, name, label, options) {
  const select = h(
    "select",
    { "data-key": name, onchange: () => change({ [name]: select.value }) },
    options.map(([value, text]) => h("option", { value }, text)),
  );
  select.value = route.query[name] ?? "";
  return h("label", {}, h("span", {}, label), select);
}

/** Offer the namespaces that exist, and keep the selected one. */
export function namespaceOptions(select, namespaces, selected = "") {
  const names = [...new Set([...namespaces, selected].filter(Boolean))];
  const known = [...select.options].slice(1).map((option) => option.value);
  if (names.join() !== known.join()) {
    select.replaceChildren(h("option", { value: "" }, "All"), ...names.map((name) => h("option", { value: name }, name)));
  }
  select.value = selected;
}

/** Show the values of the URL, unless the user is typing. */
export function sync(toolbar, route) {
  for (const field of toolbar.querySelectorAll("input, select")) {
    const value = route.query[field.dataset.key] ?? "";
    if (field.value !== value && (field !== document.activeElement || !value)) field.value = value;
  }
}

/** Whether a text contains all words of a search. */
export function matches(text, query = "") {
  const lower = text.toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => lower.includes(word));
}
