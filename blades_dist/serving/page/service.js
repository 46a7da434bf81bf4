// The HTTP interface of the service. Addresses are relative to the page, so a path prefix of a gateway is kept.

/** A request that got no answer, or a problem document (RFC 9457). `status` 0: the service was not reached. */
export class Problem extends Error {
  constructor(status, { title = "", detail = "", reason = "", request_id: requestId = "" } = {}, retryAfter = null) {
    super(detail || title);
    Object.assign(this, { status, title, detail, reason, requestId, retryAfter });
  }
}

export async function loadModels(token) {
  const { models } = await ask("v1/models", token, {});
  return models;
}

/** One file's report. Only its bytes are sent, not its name. */
export function detect(file, { fpr, crop, model }, token, signal) {
  const query = new URLSearchParams({ faces: crop ? "crop" : "locate" });
  if (fpr) query.set("fpr", fpr);
  if (model) query.set("model", model);
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  return ask(`v1/detect?${query}`, token, { method: "POST", body: file, signal, headers: { "Content-Type": type } });
}

async function ask(address, token, { headers = {}, ...options }) {
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(address, { ...options, headers: { ...headers, ...authorization }, cache: "no-store" });
    if (answer.ok) return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(answer?.status ?? 0, { detail: answer ? "The answer cannot be read." : "" });
  }
  // A proxy in between answers without a document of ours.
  const document = await answer.json().catch(() => ({}));
  const requestId = answer.headers.get("X-Request-Id") ?? undefined;
  throw new Problem(answer.status, { request_id: requestId, ...document }, secondsUntil(answer.headers.get("Retry-After")));
}

/** Seconds that a Retry-After header (seconds or a date) asks to wait; null without one. */
function secondsUntil(header) {
  if (header === null) return null;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}
