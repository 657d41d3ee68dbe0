// The HTTP API of docs/api.md. Every failure is an ApiError with a sentence for people.

import { TEXT } from "./texts.js";

export class ApiError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.code = code;
    this.details = details;
  }
}

async function call(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ApiError("unreachable", TEXT.unreachable);
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const { code = "internal", message = TEXT.wentWrong, ...details } = answer.error ?? {};
  throw new ApiError(code, message, details);
}

const path = (...parts) => ["/api", ...parts.map(encodeURIComponent)].join("/");

export const api = {
  model: () => call("GET", path("model")),
  conversations: (cursor) => call("GET", path("conversations") + (cursor ? `?cursor=${encodeURIComponent(cursor)}` : "")),
  conversation: (id) => call("GET", path("conversations", id)),
  newConversation: () => call("POST", path("conversations"), {}),
  deleteConversation: (id) => call("DELETE", path("conversations", id)),
  send: (id, message) => call("POST", path("conversations", id, "messages"), message),
  reasoning: (id) => call("GET", path("messages", id, "reasoning")),
  stop: (runId) => call("POST", path("runs", runId, "stop")),
  answerNow: (runId) => call("POST", path("runs", runId, "answer-now")),
  events: (runId, after) => `${path("runs", runId, "events")}${after ? `?after=${after}` : ""}`,
};

/** A key that makes a repeated send the same message; `randomUUID` needs a secure context. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
