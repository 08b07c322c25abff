// The server's interface: one request, its events as they come, and its errors in words.

const ADVICE = {
  401: "Type the server's key into the field above.",
  404: "The page and the server may be of different versions: reload the page.",
  413: "Here: remove candidates, shorten texts, or rank in parts.",
  429: "Others are being served.",
  500: "That is the server's fault. Try again; if it stays, please report it.",
  503: "The model is not ready yet. Wait a moment and rank again.",
  504: "Here: choose fast, or fewer candidates, or fewer votes.",
};
// An error that comes after the stream has begun has no status, only a class.
const STATUS = { overloaded_error: 429, request_too_large: 413, timeout_error: 504, unavailable_error: 503, server_error: 500 };

// An error in words: what happened, and what to do about it.
export class Problem extends Error {
  constructor(message, remedy, status = 0) {
    super(message);
    this.remedy = remedy;
    this.status = status;
  }
}

function problemOf(status, body, retryAfter) {
  const said = body?.error?.message ?? body?.message ?? body?.detail ?? body?.error;
  const message = typeof said === "string" && said ? sentence(said) : `The server answered with status ${status}.`;
  let remedy = ADVICE[status] ?? (status >= 500 ? ADVICE[500] : "");
  if (status === 429) remedy += retryAfter ? ` Try again in ${retryAfter} s.` : " Try again in a moment.";
  return new Problem(message, remedy, status);
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

async function send(path, key, options = {}) {
  const headers = { Accept: "text/event-stream, application/json", ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(
      "The server cannot be reached.",
      "See whether it still runs (it is started by: retrv-r1 serve), then rank again.",
    );
  }
}

// Ranks. `onReasoning(text)` and `onInspection(index)` are called as the model writes and looks,
// `onDraft(body)` with an early answer that may change.
// Resolves to the response's body. Throws Problem, or AbortError if `signal` says so.
export async function rerank(body, { key, signal, onReasoning, onInspection, onDraft }) {
  const response = await send("v1/rerank", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const streams = (response.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
  if (!response.ok || !streams) {
    const answer = await response.json().catch(() => null);
    if (response.ok && answer) return answer;
    throw problemOf(response.status, answer, response.headers.get("Retry-After"));
  }
  for await (const { event, data } of events(response.body)) {
    // Of several chains of thought the first is shown as it is written.
    if (event === "reasoning") (data.vote ?? 0) === 0 && onReasoning?.(data.text);
    else if (event === "inspection") onInspection?.(data.index);
    else if (event === "draft") onDraft?.(data);
    else if (event === "ranking") return data;
    else if (event === "error") throw problemOf(STATUS[data.error?.type] ?? 400, data);
  }
  throw new Problem("The connection ended before the ranking came.", "Rank again.");
}

// Parses server-sent events; comments and unknown fields are skipped.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Problem("The connection broke while the model was at work.", "Rank again.");
      });
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const parsed = eventOf(block);
        if (parsed) yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function eventOf(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  const text = data.join("\n");
  return text && text !== "[DONE]" ? { event, data: JSON.parse(text) } : null;
}

// What the server says about itself: `model` and `device`, or `locked` if it asks for a key, or
// `loading` while the model is on its way; null if it says nothing.
export async function facts(key) {
  try {
    const health = await send("health", key);
    if (health.status === 503) return { loading: (await health.json()).status === "loading" };
    const response = await send("info", key);
    if (response.status === 401) return { locked: true };
    const info = response.ok ? await response.json() : null;
    return info && { model: info.model_id, device: info.device };
  } catch {
    return null;
  }
}
