// The HTTP API of docs/api.md. Every failure is an ApiError with a sentence for people.

import { TEXT } from "./texts.js";

export class ApiError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.code = code;
    this.details = details;
  }
}

/** Some site shows the page in a frame: then the cookie has to be another. */
export const isFramed = window.top !== window;

const doors = { signed_out: () => {}, sign_in_first: () => {} };

/** What to do, whatever call it was, when the session has ended (`signed_out`) or an account is needed (`sign_in_first`). */
export function onShutDoors(open) {
  Object.assign(doors, open);
}

const framed = () => (isFramed ? { "X-Ponder-Framed": "1" } : {});

async function call(method, path, body) {
  const headers = framed();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError("unreachable", TEXT.unreachable);
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw refusal(answer);
}

function refusal({ error }) {
  const { code = "internal", message = TEXT.wentWrong, ...details } = error ?? {};
  doors[code]?.();
  return new ApiError(code, TEXT.errors?.[code]?.(details) ?? message, details);
}

/** As `call`, for a file: `onProgress` gets how much of it is there, from 0 to 1. `fetch` cannot tell. */
function upload(path, file, onProgress) {
  const request = new XMLHttpRequest();
  request.open("POST", path);
  request.responseType = "json";
  for (const [name, value] of Object.entries({ "Content-Type": "application/json", ...framed() })) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(total ? loaded / total : 0));
  return new Promise((resolve, reject) => {
    request.addEventListener("load", () => (request.status === 200 ? resolve(request.response) : reject(refusal(request.response ?? {}))));
    request.addEventListener("error", () => reject(new ApiError("unreachable", TEXT.unreachable)));
    request.send(file);
  });
}

const place = (...parts) => ["", ...parts.map(encodeURIComponent)].join("/");
const path = (...parts) => place("api", ...parts);
const auth = (...parts) => place("auth", ...parts);

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export const api = {
  model: () => call("GET", path("model")),
  conversations: ({ cursor, archived }) => call("GET", path("conversations") + query({ cursor, archived })),
  search: (q, cursor) => call("GET", path("conversations") + query({ q, cursor })),
  conversation: (id) => call("GET", path("conversations", id)),
  newConversation: (isTemporary) => call("POST", path("conversations"), isTemporary ? { is_temporary: true } : {}),
  changeConversation: (id, changes) => call("PATCH", path("conversations", id), changes),
  restoreConversation: (id) => call("POST", path("conversations", id, "restore")),
  deleteAll: () => call("DELETE", path("conversations")),
  restoreAll: (deletionId) => call("POST", path("conversations", "restore"), { deletion_id: deletionId }),
  /** As the page is being closed nobody waits for the answer. */
  leave: (id) => fetch(path("conversations", id, "leave"), { method: "POST", keepalive: true, headers: framed() }).catch(() => {}),
  exportOf: (id, format, reasoning) => path("conversations", id, "export") + query({ format, reasoning: String(reasoning) }),
  exportOfAll: (reasoning) => path("me", "export") + query({ reasoning: String(reasoning) }),
  importFile: (file, onProgress) => upload(path("me", "import"), file, onProgress),
  deleteConversation: (id) => call("DELETE", path("conversations", id)),
  retry: (id, given) => call("POST", path("messages", id, "retry"), given),
  send: (id, message) => call("POST", path("conversations", id, "messages"), message),
  reasoning: (id) => call("GET", path("messages", id, "reasoning")),
  run: (runId) => call("GET", path("runs", runId)),
  stop: (runId) => call("POST", path("runs", runId, "stop")),
  answerNow: (runId) => call("POST", path("runs", runId, "answer-now")),
  events: (runId, after) => path("runs", runId, "events") + query({ after }),

  me: () => call("GET", path("me")),
  changeMe: (changes) => call("PATCH", path("me"), changes),
  deleteMe: () => call("DELETE", path("me")),
  sessions: () => call("GET", path("me", "sessions")),
  endSession: (id) => call("DELETE", path("me", "sessions", id)),
  unlink: (id) => call("DELETE", path("me", "identities", id)),

  signUp: (given) => call("POST", auth("register"), given),
  signIn: (given) => call("POST", auth("login"), given),
  recover: (given) => call("POST", auth("recover"), given),
  signOut: (everywhere) => call("POST", auth("logout"), { everywhere }),
  /** Takes away the cookie of a session that has ended, and no other. */
  leaveEnded: () => call("POST", auth("logout"), { ended: true }),
  setPassword: (given) => call("POST", auth("password"), given),
  confirm: (password) => call("POST", auth("confirm"), { password }),
  newRecoveryCodes: () => call("POST", auth("recovery-codes")),
  startProvider: (name, given) => call("POST", auth(name, "start"), given),
  providerLogin: (name) => auth(name, "login"),
};

export const adminApi = {
  people: (q, cursor) => call("GET", path("admin", "people") + query({ q, cursor })),
  changePerson: (id, changes) => call("PATCH", path("admin", "people", id), changes),
  deletePerson: (id) => call("DELETE", path("admin", "people", id)),
  usage: () => call("GET", path("admin", "usage")),
  quotas: () => call("GET", path("admin", "quotas")),
  runs: () => call("GET", path("admin", "runs")),
  stopRun: (id) => call("POST", path("admin", "runs", id, "stop")),
};

/** A key that makes a repeated send the same message; `randomUUID` needs a secure context. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
