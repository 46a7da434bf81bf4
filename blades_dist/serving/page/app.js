// The page: takes pictures in, keeps the settings, and sends a few pictures at a time. Nothing is stored.

import { html } from "./dom.js";
import { Item } from "./item.js";
import { loadModels } from "./service.js";
import { flaggedByMistake, problemWords, share } from "./words.js";

const AT_ONCE = 2;
const byId = (id) => document.getElementById(id);

const items = [];
let models = [];
let token = "";
let running = 0;

// ---- announcements and notices

function announce(words) {
  const log = byId("announcer");
  log.append(html("p", {}, words));
  while (log.children.length > 20) log.firstChild.remove();
}

function notice(words) {
  byId("notice").hidden = !words;
  byId("notice-text").textContent = words;
}

// ---- settings

async function describeService() {
  try {
    models = await loadModels(token);
  } catch (problem) {
    if (problem.status === undefined) throw problem;
    const { what, advice } = problemWords({ ...problem, size: 0 });
    if (problem.status === 401) return askForToken(token ? "The service does not accept this token." : what);
    return notice(`${what} ${advice}`);
  }
  notice("");
  byId("token-form").hidden = !token;
  const chosen = byId("model").value;
  byId("model").replaceChildren(...models.map((model) => html("option", { value: model.name ?? "" }, model.name ?? model.detector.kind)));
  byId("model").value = (models.find((model) => model.name === chosen) ?? models.find((model) => model.default) ?? models[0])?.name ?? "";
  byId("model-row").hidden = models.length < 2;
  showOperatingPoints();
}

const chosenModel = () => models.find((model) => (model.name ?? "") === byId("model").value) ?? models[0];

function showOperatingPoints() {
  const model = chosenModel();
  if (!model) return;
  const usable = model.operating_points.filter((point) => point.threshold !== null).map((point) => point.fpr);
  const wanted = Number(byId("fpr").value);
  const rates = usable.includes(model.fpr) ? usable : [...usable, model.fpr].sort((a, b) => a - b);
  byId("fpr").replaceChildren(
    ...rates.map((fpr) => html("option", { value: fpr }, `about ${share(fpr)}${fpr === model.fpr ? " (usual)" : ""}`)),
  );
  byId("fpr").value = String(rates.includes(wanted) ? wanted : model.fpr);
  byId("calibrated").textContent = ` (${model.calibration_faces.toLocaleString("en")} real faces)`;
  const { kind, id, code_version: version } = model.detector;
  byId("about").textContent = `Detector ${model.name ?? kind} · ${id.slice(0, 12)} · version ${version}`;
  showRate();
}

function showRate() {
  const fpr = Number(byId("fpr").value);
  byId("rate-words").textContent = fpr ? flaggedByMistake(fpr) : "";
}

const settings = () => ({
  fpr: byId("fpr").value,
  crop: byId("crop").checked,
  model: models.length > 1 ? byId("model").value : "",
});

function askForToken(words) {
  byId("token-form").hidden = false;
  notice(words);
  announce(words);
}

// ---- pictures

const isPicture = (file) => !file.type || file.type.startsWith("image/");

function add(files) {
  const pictures = [...files].filter(isPicture);
  if (!pictures.length) return announce("No picture file was found in this.");
  for (const file of pictures) {
    const item = new Item(file, { judge, removed });
    items.push(item);
    byId("items").append(item.element);
  }
  byId("results").hidden = false;
  announce(pictures.length === 1 ? "1 picture added" : `${pictures.length} pictures added`);
  next();
}

function judge(item) {
  item.wait();
  next();
}

function removed(item) {
  const place = items.indexOf(item);
  items.splice(place, 1);
  item.dispose();
  byId("results").hidden = !items.length;
  (items[place]?.heading ?? items[place - 1]?.heading ?? byId("choose")).focus();
  announce(`${item.name} removed`);
}

async function next() {
  const item = items.find((each) => each.state === "waiting");
  if (!item || running >= AT_ONCE) return;
  running += 1;
  try {
    const asked = item.run(settings(), token, (report) => models.find((model) => model.detector.id === report.detector.id));
    next();
    const { words, problem } = await asked;
    if (items.includes(item)) announce(words);
    if (problem?.status === 401) askForToken(token ? "The service does not accept this token." : words);
  } finally {
    running -= 1;
    next();
  }
}

// ---- what a person does

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  add(target.files);
  target.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData?.files.length) add(clipboardData.files);
});
let inside = 0; // enter and leave come for every element on the way
const hover = (change) => {
  inside = Math.max(0, inside + change);
  byId("drop").classList.toggle("over", inside > 0);
};
document.addEventListener("dragenter", () => hover(1));
document.addEventListener("dragleave", () => hover(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  hover(-inside);
  add(event.dataTransfer.files);
});
byId("model").addEventListener("change", showOperatingPoints);
byId("fpr").addEventListener("change", showRate);
byId("reload").addEventListener("click", describeService);
byId("again-all").addEventListener("click", () => items.filter(({ state }) => state !== "sending").forEach(judge));
byId("remove-all").addEventListener("click", () => [...items].forEach(removed));
byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  await describeService();
  items.filter(({ state }) => state === "failed").forEach(judge);
});

describeService();
