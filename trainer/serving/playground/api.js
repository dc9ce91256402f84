/** What goes over the wire: requests, errors in words, and answers as they come. */

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const LOST = "The connection was lost.";

/** Models that the server has. */
export async function models(key) {
  return (await (await asked("v1/models", { headers: headers(key) })).json()).data;
}

/** Objects of a streamed answer, each as soon as it has come. Throws ServerError, or what `signal` is aborted with. */
export async function* answer(path, body, key, signal) {
  const sent = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const reader = (await asked(path, sent)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new ServerError(LOST);
    });
    // Every answer says when it is whole: without that the end is that of the connection.
    if (done) throw new ServerError(LOST);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new ServerError(sentence(found.error.message));
      yield found;
    }
  }
}

// Paths without a host: the page may be served below a path of somebody's proxy.
async function asked(path, options) {
  const response = await fetch(path, options).catch((error) => {
    throw options.signal?.aborted ? error : new ServerError("The server cannot be reached. Is it still running?");
  });
  if (response.ok) return response;
  // A proxy in between answers in words of its own.
  const told = await response.json().catch(() => null);
  const message = sentence(told?.error?.message ?? `the server answered ${response.status} ${response.statusText}`);
  const wait = response.headers.get("Retry-After");
  throw new ServerError(wait ? `${message} Try again in ${wait} s.` : message, response.status);
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/** What the server says, as a sentence; the name of a field stays as it is written. */
function sentence(words) {
  const first = /^[\w.-]+:/.test(words) ? words[0] : words[0].toUpperCase();
  return `${first}${words.slice(1)}${/[.?!]$/.test(words) ? "" : "."}`;
}
