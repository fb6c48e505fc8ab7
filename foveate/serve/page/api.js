// What the page asks of the server: its models, its state, and answers as they grow.

let key = "";

/** Sends this API key from now on. It is kept in memory only. */
export function useKey(value) {
  key = value;
}

/** What went wrong, in words; `status` is that of HTTP, 0 where no answer came. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The bundles that are served, as `/v1/models` lists them. */
export async function models() {
  const response = await request("v1/models");
  return (await response.json()).data;
}

/** "ok", "draining" or "stuck" as the server says, or "gone" where it says nothing. */
export async function serverState() {
  try {
    const response = await fetch("ready", { cache: "no-store" });
    return (await response.json()).status ?? "gone";
  } catch {
    return "gone";
  }
}

/**
 * Asks for one answer.
 *
 * @param body of `/v1/chat/completions`.
 * @param onText takes the whole text so far, whenever it grew.
 * @param signal of an AbortController: aborting makes the server free what the request holds.
 * @returns text, finish_reason and the report of the server (`foveate` of the last event).
 */
export async function ask(body, onText, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const answer = { text: "", finish: null, report: null };
  for await (const event of events(response.body)) {
    if (event.error) throw new ServerError(event.error.message);
    const choice = event.choices[0];
    if (choice?.delta.content) onText((answer.text += choice.delta.content));
    answer.finish = choice?.finish_reason ?? answer.finish;
    answer.report = event.foveate ?? answer.report;
  }
  if (!answer.report) throw new ServerError("The server broke off before the answer was whole. Ask again.");
  return answer;
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server can't be reached. See whether 'foveate serve' still runs.");
  }
  if (!response.ok) throw new ServerError(await words(response), response.status);
  return response;
}

async function words(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status} and no explanation.`;
  }
}

/** The events of a stream. They are read by hand: EventSource can't send a body. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
