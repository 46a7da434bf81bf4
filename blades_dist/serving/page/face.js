// What the service says about one face.

import { html, svg } from "./dom.js";
import { histogram } from "./histogram.js";
import { capital, pValue, percent, position, reEncoding, share, taskName, verdictWords } from "./words.js";

const REGIONS = "face_fine";
const MANIPULATION = "face_coarse";

/** The panel of a face; `model` as /v1/models describes it, or undefined. */
export function facePanel(face, model) {
  const n = model?.calibration_faces;
  return html(
    "div",
    { class: "panel" },
    html("p", {}, verdictWords(face)),
    face.unsure_because.length ? html("ul", {}, face.unsure_because.map((reason) => html("li", {}, capital(reason), "."))) : null,
    section("Among real faces", [
      html("p", {}, position(face.p_value, n), " ", html("span", { class: "soft whole" }, `p-value ${pValue(face.p_value)}`)),
      histogram(model?.histogram, face, n),
      face.probability === null
        ? null
        : html("p", {}, `The detector has also seen generated faces and gives ${percent(face.probability)} probability to this being one.`),
    ]),
    reEncodings(face),
    regions(face.read_outs),
    camera(face),
    html(
      "p",
      { class: "soft small part" },
      `Score ${face.score.toPrecision(5)}${model?.score_unit ? ` ${model.score_unit}` : ""}; `,
      face.threshold === null ? "no limit" : `limit ${face.threshold.toPrecision(5)}`,
      ` at ${share(face.fpr)}.`,
    ),
  );
}

function reEncodings(face) {
  const entries = Object.entries(face.re_encoded);
  if (!entries.length) return null;
  const row = (name, p) =>
    html("tr", {}, html("th", { scope: "row" }, name), html("td", {}, `about ${share(p, 0)}`), html("td", { class: "whole" }, pValue(p)));
  return section("The same face saved again", [
    html("p", { class: "soft" }, "A verdict that a harmless copy would change is not given."),
    table(
      "How many real photographs look as unusual",
      ["Version", "As unusual", "p-value"],
      [row("As it came", face.p_value), ...entries.map(([name, p]) => row(capital(reEncoding(name)), p))],
    ),
  ]);
}

function regions(readOuts) {
  const found = Object.entries(readOuts[REGIONS] ?? {});
  const manipulated = readOuts[MANIPULATION]?.manipulated;
  if (manipulated !== undefined) found.unshift(["whole face", manipulated]);
  if (!found.length) return null;
  return section("Traces of manipulation", [
    html("p", { class: "soft" }, "How much each part looks like the manipulations the encoder has learnt from. No part of the verdict."),
    table(
      "Traces of manipulation",
      ["Part", "Probability"],
      found.map(([name, p]) => html("tr", {}, html("th", { scope: "row" }, capital(name)), html("td", {}, bar(p), percent(p)))),
    ),
  ]);
}

function camera({ read_outs: readOuts, exif_consistency: consistency }) {
  const tasks = Object.keys(readOuts).filter((task) => task !== REGIONS && task !== MANIPULATION);
  if (!tasks.length) return null;
  const claims = consistency?.tags ?? {};
  const rows = tasks.map((task) => {
    const [likely, p] = Object.entries(readOuts[task]).reduce((best, other) => (other[1] > best[1] ? other : best));
    const claim = claims[task];
    const claimed = claim
      ? [`${claim.claimed} `, html("span", { class: "soft" }, `${percent(claim.probability)}${claim.p_value === null ? "" : `, p ${pValue(claim.p_value)}`}`)]
      : [html("span", { class: "soft" }, "nothing")];
    return html(
      "tr",
      {},
      html("th", { scope: "row" }, taskName(task)),
      html("td", {}, `${likely} `, html("span", { class: "soft" }, percent(p))),
      consistency ? html("td", {}, ...claimed) : null,
    );
  });
  const heads = ["Setting", "The pixels suggest", ...(consistency ? ["The file claims"] : [])];
  return section("Camera settings", [
    html("p", {}, consistency ? consistencyWords(consistency) : "The file claims no camera settings to compare with.", " No part of the verdict."),
    html(
      "details",
      {},
      html("summary", {}, "All settings"),
      consistency ? html("p", { class: "soft small" }, "Behind each value the probability the pixels give to it; p: how usual so low a one is among photographs that claim this setting.") : null,
      table("Camera settings", heads, rows, "settings-table"),
    ),
  ]);
}

function consistencyWords({ tags, p_value: p, compared_with: n }) {
  const claimed = Object.keys(tags).length;
  if (p === null) return `The file claims ${claimed} of these settings; too few photographs that claim the same were there to compare with (${n}).`;
  const fits = `About ${share(p, 0)} of the photographs compared with (${n}) fit their own claims as badly, or worse (p-value ${pValue(p)}).`;
  return p <= 0.05
    ? `The pixels contradict what the file claims about the camera. ${fits} The pixels or the claims may be wrong; claims are easily copied.`
    : `The pixels do not contradict what the file claims about the camera. ${fits}`;
}

function section(title, children) {
  return html("div", { class: "part" }, html("h5", {}, title), ...children);
}

function table(caption, heads, rows, kind = null) {
  return html(
    "table",
    { class: kind },
    html("caption", { class: "hidden" }, caption),
    html("thead", {}, html("tr", {}, heads.map((head) => html("th", { scope: "col", class: head === "p-value" ? "whole" : null }, head)))),
    html("tbody", {}, ...rows),
  );
}

const bar = (p) =>
  svg("svg", { class: "share", "aria-hidden": "true" }, svg("rect", { class: "rest", width: "100%", height: "100%" }), svg("rect", { width: `${100 * p}%`, height: "100%" }));
