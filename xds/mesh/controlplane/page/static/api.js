// Requests of the API, and the stream of events.

/** The response of the API had another status than 200. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.isThrottled = status === 429;
  }
}

/** Return a view of the API. Parameters that are empty are left out. */
export async function get(view, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value));
  const response = await fetch(`api/v1/${view}?${query}`, { signal });
  if (response.ok) return response.json();
  const text = await response.text();
  let message = text.trim();
  try {
    message = JSON.parse(text).error;
  } catch {
    // Not JSON: the text is the message.
  }
  throw new ApiError(message || `status ${response.status}`, response.status);
}

const RETRY_DELAY = 1000; // milliseconds

/**
 * Listen to events while the page is visible: browsers allow few connections to one server.
 *
 * onOpen is called after each connect, onLost when the connection is lost, and onChange with the names of changed
 * views.
 */
export function listen({ onOpen, onLost, onChange }) {
  let source = null;
  let timer = 0;

  function connect() {
    if (source || document.hidden) return;
    source = new EventSource("api/v1/events");
    source.addEventListener("hello", onOpen);
    source.addEventListener("changed", (event) => onChange(JSON.parse(event.data).views));
    source.addEventListener("error", () => {
      close();
      onLost();
      timer = setTimeout(connect, RETRY_DELAY);
    });
  }

  function close() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : connect()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", connect);
  connect();
}
