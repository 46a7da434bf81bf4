// One picture on the page: its state, its request, and the card that shows both.

import { html, uniqueId } from "./dom.js";
import { facePanel } from "./face.js";
import { picture } from "./picture.js";
import { detect } from "./service.js";
import { VERDICTS, capital, problemWords, several, share, summary } from "./words.js";

export class Item {
  #url;
  #picture;
  #abort = null;
  #parts = [];

  /** `hooks`: judge(item), removed(item), both on a person's wish. */
  constructor(file, hooks) {
    this.file = file;
    this.name = file.name || "Pasted picture";
    this.state = "waiting";
    this.#url = URL.createObjectURL(file);
    this.#picture = picture(this.#url, this.name);
    this.#build(hooks);
    this.#show("waiting", "Waiting");
  }

  #build(hooks) {
    const title = uniqueId("item");
    const named = { "aria-describedby": title };
    this.status = html("p", { class: "status" });
    this.cancelButton = html("button", { type: "button", ...named, onclick: () => this.cancel() }, "Cancel");
    this.againButton = html("button", { type: "button", ...named, onclick: () => hooks.judge(this) }, "Judge again");
    this.removeButton = html("button", { type: "button", ...named, onclick: () => hooks.removed(this) }, "Remove");
    this.body = html("div", { class: "faces-and-more" });
    this.heading = html("h3", { id: title, tabindex: "-1" }, this.name);
    this.element = html(
      "li",
      { class: "item", "aria-labelledby": title },
      this.heading,
      html("div", { class: "row spread" }, this.status, html("div", { class: "row" }, this.cancelButton, this.againButton, this.removeButton)),
      html("div", { class: "columns" }, this.#picture.element, this.body),
    );
  }

  #show(state, words) {
    this.state = state;
    this.element.dataset.state = state;
    this.element.setAttribute("aria-busy", String(state === "sending"));
    this.status.textContent = words;
    const busy = state === "waiting" || state === "sending";
    const hadFocus = [this.cancelButton, this.againButton].includes(document.activeElement);
    this.cancelButton.hidden = !busy;
    this.againButton.hidden = busy;
    if (hadFocus) (busy ? this.cancelButton : this.againButton).focus();
  }

  wait() {
    this.body.replaceChildren();
    this.#picture.clear();
    this.#parts = [];
    this.#show("waiting", "Waiting");
  }

  /** Sends the picture and shows the answer. Returns what to announce, and the problem if there was one. */
  async run(settings, token, modelOf) {
    this.#abort = new AbortController();
    this.#show("sending", "Being judged …");
    try {
      const report = await detect(this.file, settings, token, this.#abort.signal);
      this.#answer(report, modelOf(report));
      return { words: `${this.name}: ${summary(report.faces)}` };
    } catch (error) {
      if (error.name === "AbortError") return { words: `${this.name}: cancelled` };
      if (error.status === undefined) throw error; // a fault of this page
      return { words: `${this.name}: ${this.#problem(error)}`, problem: error };
    } finally {
      this.#abort = null;
    }
  }

  cancel() {
    this.#abort?.abort();
    this.#show("cancelled", "Cancelled");
  }

  dispose() {
    this.#abort?.abort();
    this.element.remove();
    URL.revokeObjectURL(this.#url);
  }

  #problem(problem) {
    const { what, advice } = problemWords({ ...problem, size: this.file.size });
    this.#show("failed", "Not judged");
    const said = [problem.detail && `The service says: ${problem.detail}`, problem.requestId && `request ${problem.requestId}`];
    this.body.replaceChildren(
      html(
        "div",
        { class: "notice bad" },
        html("p", {}, html("strong", {}, what), " ", advice),
        html("p", { class: "small" }, said.filter(Boolean).join(" · ")),
      ),
    );
    return `${what} ${advice}`;
  }

  #answer(report, model) {
    this.#show("done", capital(summary(report.faces)));
    this.#parts = report.faces.map((face) => this.#faceEntry(face, model));
    const told = [credentials(report.credentials), notLookedAt(report), fileDetails(report)];
    const faces = html("ol", { class: "faces" }, this.#parts.map((part) => part.element));
    this.body.replaceChildren(faces, ...told.filter(Boolean));
    this.#picture.outline(report, (face) => this.#fromPicture(face));
    this.select(report.faces[0]?.face ?? null);
  }

  #faceEntry(face, model) {
    const panel = facePanel(face, model);
    panel.id = uniqueId("face");
    const toggle = () => this.select(button.getAttribute("aria-expanded") === "true" ? null : face.face);
    const button = html(
      "button",
      { type: "button", class: "face", "aria-expanded": "false", "aria-controls": panel.id, onclick: toggle },
      html("span", {}, `Face ${face.face}`),
      html("span", { class: `chip ${face.verdict}` }, VERDICTS[face.verdict]),
    );
    return { face: face.face, button, panel, element: html("li", {}, html("h4", {}, button), panel) };
  }

  /** Opens one face (null: none), here and in the picture. */
  select(face) {
    for (const part of this.#parts) {
      part.button.setAttribute("aria-expanded", String(part.face === face));
      part.panel.hidden = part.face !== face;
    }
    this.#picture.select(face);
  }

  #fromPicture(face) {
    this.select(face);
    this.#parts.find((part) => part.face === face)?.element.scrollIntoView({ block: "nearest" });
  }
}

function credentials(found) {
  if (!found) return null;
  const states = {
    Trusted: "signed by someone the service trusts, and unchanged since",
    Valid: "unchanged since signing; who signed is not vouched for",
    Invalid: "do not fit the file or are damaged",
    unknown: "could not be checked",
  };
  const lines = [
    `State: ${states[found.state] ?? found.state}.`,
    found.generated && "They say that an algorithm made the picture or parts of it.",
    found.generator && `Written by: ${found.generator}.`,
    found.issuer && `Signed by: ${found.issuer}.`,
    found.source_types?.length && `Kind of source: ${found.source_types.join(", ")}.`,
    found.error && `Reading them failed: ${found.error}`,
  ];
  return html(
    "div",
    { class: "part" },
    html("h4", {}, "Content credentials (C2PA)"),
    html("ul", {}, lines.filter(Boolean).map((line) => html("li", {}, line))),
    html("p", { class: "soft" }, "Told beside the verdicts, no part of them. Most files have none, and they are easily removed."),
  );
}

function notLookedAt(report) {
  const whole = report.faces_from === "whole image";
  const lines = [
    report.faces_too_small > 0 && `${several(report.faces_too_small, "face that is", "faces that are")} too small.`,
    !whole && "Faces that were not found, for instance turned away or covered.",
    whole ? "Everything outside the central square." : "Everything outside the outlines: bodies, background, text.",
    `The file's metadata${report.credentials ? " and content credentials" : ""}: shown, but no part of a verdict.`,
  ];
  return html("div", { class: "part" }, html("h4", {}, "Not looked at"), html("ul", {}, lines.filter(Boolean).map((line) => html("li", {}, line))));
}

function fileDetails(report) {
  const seconds = report.timings?.total;
  const rows = {
    Size: `${report.width} × ${report.height} pixels, ${report.bytes.toLocaleString("en")} bytes`,
    Format: report.codec.toUpperCase() + (report.jpeg_quality === null ? "" : `, quality about ${Math.round(report.jpeg_quality)}`),
    "SHA-256": report.sha256,
    Setting: report.faces.length ? `${share(report.faces[0].fpr)} real faces flagged by mistake` : null,
    Detector: `${report.detector.kind}, version ${report.detector.code_version}`,
    "Detector id": report.detector.id,
    Request: report.request_id,
    Time: seconds === undefined ? null : `${seconds.toFixed(2)} s`,
  };
  const entries = Object.entries(rows).filter(([, value]) => value);
  return html(
    "details",
    { class: "part" },
    html("summary", {}, "File and detector"),
    html("dl", { class: "facts" }, entries.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value)))),
  );
}
