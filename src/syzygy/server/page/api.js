// The server's API: its key, its errors, its streams of events.

const KEY = "syzygy-key";

/** A request that the server refused, and why. */
export class Refused extends Error {
  constructor(status, error, retryAfter) {
    super(error.message);
    Object.assign(this, { status, param: error.param ?? null, code: error.code ?? null, retryAfter });
  }
}

let askForKey = async () => null;

/** `ask(again)` resolves to the key that a person gave. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/** The server's answer, whatever it says; asks for the key as long as it is missing or wrong. */
async function fetched(path, options, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, signal, referrerPolicy: "no-referrer" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, { message: "the server does not answer. Is it still running?" });
    }
    if (answer.status !== 401) return answer;
    sessionStorage.setItem(KEY, await askForKey(key !== null));
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const error = body.error ?? { message: `the server answered ${answer.status}, without an explanation.` };
  throw new Refused(answer.status, error, Number(answer.headers.get("Retry-After")) || null);
}

/** Ask for JSON. */
export async function ask(path, options = {}, signal = undefined) {
  const answer = await checked(await fetched(path, options, signal));
  return answer.json();
}

/** The recipe inside an image: {record, request: {path, body}, notes}. */
export function recipeOf(file) {
  const body = new FormData();
  body.append("image", file, "picture.png");
  return ask("v1/images/recipes", { method: "POST", body });
}

/** Ask for images; yields the events of their stream, and ends with it. */
export async function* generation(path, body, signal) {
  const sent = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await checked(await fetched(path.replace(/^\//, ""), sent, signal));
  let left = body.n;
  for await (const event of events(answer.body)) {
    if (event.error) throw new Refused(500, event.error);
    if (event.type.endsWith(".completed")) left--;
    yield event;
  }
  if (left) throw broken();
}

const broken = () => new Refused(0, { message: "the connection was lost before all images were finished." });

/** The data of server-sent events. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : broken();
    });
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((one) => one.startsWith("data: "));
      if (line) yield JSON.parse(line.slice(6));
    }
  }
}
