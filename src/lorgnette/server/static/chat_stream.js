/* Asks the API and reads its streams. EventSource cannot post. */

/** What the server said, or that it said nothing. status: of HTTP; 0 if it did not answer. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The data of each server-sent event in a stream of bytes. An event that is cut off is none. */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {  // other lines are comments, or fields that have no use here
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});  // of a stream that has failed
  }
}

const post = async (body, signal) => {
  try {
    return await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("The server does not answer.");
  }
};

const readError = async (response) => {
  const body = await response.json().catch(() => null);
  return new ApiError(body?.error?.message ?? `The server answered ${response.status}.`, response.status);
};

/** Streams an answer: calls `onText` with each piece, and returns why it ended: "stop" or "length".
 *  Throws ApiError, and what `fetch` throws after an abort. */
export const streamChat = async (body, { signal, onText }) => {
  const response = await post({ ...body, stream: true }, signal);
  if (!response.ok) throw await readError(response);
  let reason = null;
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return reason;
      const { error, choices } = JSON.parse(data);
      if (error) throw new ApiError(error.message, response.status);
      const [choice] = choices;
      if (choice?.delta.content) onText(choice.delta.content);
      reason = choice?.finish_reason ?? reason;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
  }
  throw new ApiError("The answer broke off: the server has gone.");
};
