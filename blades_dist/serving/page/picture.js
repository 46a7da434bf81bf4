// A picture as the browser shows it, with its faces outlined. The lines differ in style, not in colour alone.

import { html, svg } from "./dom.js";
import { VERDICTS } from "./words.js";

/** {element, outline(report, onSelect), select(face)}; `url` of the local file. */
export function picture(url, name) {
  const image = html("img", { src: url, alt: `The picture ${name}`, decoding: "async" });
  const note = html("figcaption", { class: "soft", hidden: true });
  const frame = html("div", { class: "frame" }, image);
  const element = html("figure", { class: "picture" }, frame, note);
  const ready = new Promise((resolve) => {
    image.addEventListener("load", () => resolve(true));
    image.addEventListener("error", () => resolve(false));
  });
  let marks = [];
  let selected = null;

  const size = (width, height) => {
    frame.style.setProperty("--ratio", width / height);
    frame.style.setProperty("--pixels", `${width}px`);
  };
  const say = (words) => {
    note.textContent = words;
    note.hidden = !words;
  };
  ready.then((shown) => (shown ? size(image.naturalWidth, image.naturalHeight) : image.remove()));

  /** Draws the faces of an answer over the picture, in place of earlier ones. */
  async function outline(report, onSelect) {
    clear();
    const shown = await ready;
    const turned = shown && Math.abs(Math.log((image.naturalWidth / image.naturalHeight) * (report.height / report.width))) > 0.02;
    if (turned) return say("Your browser shows this picture otherwise than the service reads it, so no face is outlined.");
    if (!shown) {
      size(report.width, report.height);
      say("Your browser cannot show this format. The outlines say where the faces are.");
    }
    const drawing = svg("svg", { viewBox: `0 0 ${report.width} ${report.height}`, class: "outlines", "aria-hidden": "true" });
    const buttons = [];
    marks = report.faces.map((face) => {
      const [x, y, width, height] = face.box;
      const lines = ["under", "over"].map((layer) => svg("rect", { class: `${layer} ${face.verdict}`, x, y, width, height, rx: width / 40 }));
      const group = svg("g", {}, ...lines);
      drawing.append(group);
      const label = `Face ${face.face}: ${VERDICTS[face.verdict]}`;
      const number = html("span", { class: "number" }, String(face.face));
      const button = html("button", { type: "button", class: "spot", "aria-label": label, title: label, "aria-pressed": "false", onclick: () => onSelect(face.face) }, number);
      const part = { left: x / report.width, top: y / report.height, width: width / report.width, height: height / report.height };
      for (const [edge, value] of Object.entries(part)) button.style[edge] = `${100 * value}%`;
      buttons.push(button);
      return { face: face.face, group, button };
    });
    frame.append(drawing, ...buttons);
    select(selected);
  }

  function clear() {
    for (const old of frame.querySelectorAll(".outlines, .spot")) old.remove();
    marks = [];
    say("");
  }

  function select(face) {
    selected = face;
    for (const mark of marks) {
      mark.group.classList.toggle("selected", mark.face === face);
      mark.button.setAttribute("aria-pressed", String(mark.face === face));
    }
  }

  return { element, outline, select, clear };
}
