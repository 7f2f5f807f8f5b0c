// The URL of a view: #/VIEW/ARGUMENT?QUERY. Filters are part of it, so that it can be shared.

/** Return the view, the argument and the query of the current URL. A malformed URL shows the map. */
export function current() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  try {
    return { view: view || "map", argument: decodeURIComponent(rest.join("/")), query: Object.fromEntries(new URLSearchParams(query)) };
  } catch {
    return { view: "map", argument: "", query: {} };
  }
}

/** Return the URL of a view. Parameters that are empty are left out. */
export function url(view, argument = "", query = {}) {
  const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const path = argument ? `${view}/${encodeURIComponent(argument)}` : view;
  return `#/${path}${parameters.size ? `?${parameters}` : ""}`;
}

/** Change parameters of the current URL. A changed filter does not become an entry of the browser's history. */
export function change(query, { push = false } = {}) {
  const { view, argument, query: old } = current();
  const target = url(view, argument, { ...old, ...query });
  if (target === location.hash) return;
  if (push) location.hash = target;
  else {
    history.replaceState(null, "", target);
    dispatchEvent(new HashChangeEvent("hashchange"));
  }
}
