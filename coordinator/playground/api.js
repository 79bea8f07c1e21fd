// The two calls that this page makes, and what they can answer.

/** Where the API is: beside this page, so that it works behind a path of a proxy, too. */
export const baseUrl = new URL("v1", document.baseURI).href;

/** Something that went wrong, as a sentence for the reader. */
export class Failure extends Error {
  constructor(message, { status, code, param, requestId, retryAfter } = {}) {
    super(message);
    Object.assign(this, { status, code, param, requestId, retryAfter });
  }
}

/** The served models. */
export async function listModels(key, signal) {
  const response = await call("models", key, { signal });
  return (await response.json()).data;
}

/**
 * Sends a chat request. `onChunk` gets each chunk of a stream, or the whole answer; `onRaw` gets each as text. Throws a
 * `Failure`, also when a stream breaks on its way, and the signal's reason when it is aborted.
 */
export async function complete(body, key, signal, onChunk, onRaw) {
  const response = await call("chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const about = { status: response.status, requestId: response.headers.get("x-request-id") };
  if (!body.stream) {
    const text = await response.text();
    onRaw(text);
    onChunk(JSON.parse(text));
    return;
  }
  for await (const data of events(response.body, signal)) {
    onRaw(data);
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw failure(chunk, about);
    onChunk(chunk);
  }
  throw new Failure("The connection ended before the answer was complete.", about);
}

async function call(path, key, options) {
  const headers = { ...options.headers, Authorization: `Bearer ${key}` };
  let response;
  try {
    response = await fetch(`${baseUrl}/${path}`, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(`The server at ${new URL(baseUrl).host} cannot be reached.`);
  }
  if (response.ok) return response;
  const about = {
    status: response.status,
    requestId: response.headers.get("x-request-id"),
    retryAfter: response.headers.get("retry-after"),
  };
  throw failure(await response.json().catch(() => ({})), about);
}

function failure(body, about) {
  const { message, code, param } = body.error ?? {};
  const text = message ?? `The server answered with status ${about.status}.`;
  return new Failure(sentence(text), { ...about, code, param });
}

/** A message of the server with a capital and a full stop. */
function sentence(text) {
  const trimmed = text.trim();
  const capital = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}

/** Data of server-sent events. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const complete = buffer.split("\n\n");
      buffer = complete.pop();
      for (const event of complete) {
        const lines = event.split("\n").filter((line) => line.startsWith("data:"));
        // Comments keep the connection alive and carry nothing.
        if (lines.length > 0) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    throw new Failure("The connection broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
