// Scores of real calibration faces as bars, with the limit of the operating point and the mark of one face.

import { html, svg } from "./dom.js";
import { position } from "./words.js";

const WIDTH = 320;
const TOP = 22; // room for the mark
const HEIGHT = 96;

/** A figure, or null where the service gives no histogram. */
export function histogram({ edges, counts } = {}, face, n) {
  if (!edges?.length || !counts?.length) return null;
  const first = edges[0];
  const last = edges[edges.length - 1];
  const x = (score) => (WIDTH * (Math.min(last, Math.max(first, score)) - first)) / (last - first || 1);
  const most = Math.max(...counts, 1);
  const bars = counts.map((count, i) => {
    const height = count ? Math.max(1.5, ((HEIGHT - TOP) * count) / most) : 0;
    const width = Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1);
    return svg("rect", { class: "bar", x: x(edges[i]), y: HEIGHT - height, width, height });
  });
  const mark = Math.min(WIDTH - 6, Math.max(6, x(face.score)));
  const limit = face.threshold === null ? null : x(face.threshold);
  const outside = face.score < first || face.score > last;
  const side = face.threshold === null ? "" : face.score < face.threshold ? " It lies below the limit." : " It lies above the limit.";
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT + 1}`, class: "histogram", role: "img", "aria-label": `Histogram of the scores of real faces. ${position(face.p_value, n)}${side}` },
    ...bars,
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
    limit === null ? null : svg("line", { class: "limit", x1: limit, x2: limit, y1: TOP - 8, y2: HEIGHT }),
    svg("path", { class: "mark", d: `M${mark} ${TOP - 3}l-6-11h12z` }),
    svg("line", { class: "mark", x1: mark, x2: mark, y1: TOP - 4, y2: HEIGHT }),
  );
  return html(
    "figure",
    { class: "chart" },
    picture,
    html("div", { class: "row spread soft", "aria-hidden": "true" }, html("span", {}, "← less like a photograph"), html("span", {}, "more →")),
    html(
      "figcaption",
      {},
      key("key-mark", outside ? "this face (beyond the end of the scale)" : "this face"),
      limit === null ? null : key("key-limit", "limit: faces to its left are flagged"),
      key("key-bar", "real faces"),
    ),
  );
}

const key = (kind, words) => html("span", { class: "key" }, html("span", { class: kind, "aria-hidden": "true" }), words);
