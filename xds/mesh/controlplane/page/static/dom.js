// Creates elements. Texts become text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. Attributes whose name starts with "on" are listeners; null and false leave one out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an SVG element, like `h`. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Change the content of an element. The element with the same data-key as the focused one gets the focus. */
function keepFocus(parent, update) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  update();
  if (key && !parent.contains(document.activeElement)) {
    parent.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
  }
}

/** Replace the children of an element, and keep the focus. */
export function replace(parent, ...children) {
  keepFocus(parent, () => parent.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== "")));
}

const madeFrom = new WeakMap(); // for each element that `keyed` has made: its key and inputs

/**
 * Make the children of an element those of some items, in their order. An item whose inputs have not changed keeps its
 * element.
 *
 * items: { key, inputs }, with inputs that JSON can represent. make: returns the element of an item.
 */
export function keyed(parent, items, make) {
  keepFocus(parent, () => {
    const old = new Map([...parent.children].map((element) => [madeFrom.get(element)?.key, element]));
    const keys = new Set(items.map((item) => item.key));
    for (const [key, element] of old) if (!keys.has(key)) element.remove();
    let next = parent.firstElementChild;
    for (const item of items) {
      const inputs = JSON.stringify(item.inputs);
      let element = old.get(item.key);
      if (!element || madeFrom.get(element).inputs !== inputs) {
        const made = make(item);
        madeFrom.set(made, { key: item.key, inputs });
        element?.replaceWith(made);
        if (element === next) next = made;
        element = made;
      }
      if (element === next?.nextElementSibling) {
        parent.append(next); // Only this one has moved. It gets its place later.
        next = element;
      }
      if (element === next) next = next.nextElementSibling;
      else parent.insertBefore(element, next);
    }
  });
}

/** Return a number with its noun, such as "1 pod" or "3 pods". */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** Return the time between two timestamps of a response, such as "14s" or "3m20s". */
export function elapsed(since, now) {
  if (!since) return "-";
  return duration(Math.max(0, Math.round((Date.parse(now) - Date.parse(since)) / 1000)));
}

/** Return a number of seconds in short, such as "14s" or "3m20s". */
export function duration(seconds) {
  for (const [unit, length, next, nextLength] of [["d", 86400, "h", 3600], ["h", 3600, "m", 60], ["m", 60, "s", 1]]) {
    if (seconds < length) continue;
    const rest = Math.floor((seconds % length) / nextLength);
    return `${Math.floor(seconds / length)}${unit}${rest ? `${rest}${next}` : ""}`;
  }
  return `${seconds}s`;
}

const SYMBOLS = { good: "✓", wait: "…", warn: "!", bad: "✕", off: "○", denied: "⊘" };

/** Return a state as a symbol and a word: good, wait, warn, bad, off or denied. */
export function badge(kind, text) {
  return h("span", { class: `badge ${kind}` }, h("span", { "aria-hidden": "true" }, SYMBOLS[kind]), ` ${text}`);
}

/** Return an object of the mesh with its place. */
export function objectName(object) {
  const name = [object.kind, [object.namespace, object.name].filter(Boolean).join("/")].join(" ");
  return [h("code", {}, name), object.place ? h("span", { class: "place" }, ` ${object.place}`) : ""];
}

/** Return the note of a view without content. */
export function empty(title, text) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), text ? h("p", {}, text) : "");
}
