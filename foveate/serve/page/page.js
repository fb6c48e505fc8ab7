// The page of `foveate serve`: a question about pictures, its answer, and what was decided about their visual tokens.

import { ask, models, serverState, ServerError, useKey } from "./api.js";
import { draw, heatScale } from "./canvas.js";
import { element } from "./dom.js";
import { milliseconds, showFigures } from "./figures.js";

const HISTORY = 8; // asks that can be looked at again
const POLL_MS = 5000;
const SETTLE_MS = 400; // how long keep rests before it is asked again
const STATES = { ok: ["ready", "ready"], draining: ["shutting down", "trouble"], stuck: ["stuck", "trouble"], gone: ["no answer from the server", "trouble"] };

const $ = (id) => document.getElementById(id);

/** Images and videos of the next question: `{kind, url, name, image}`. */
let media = [];
/** What the server has: entries of `/v1/models`. */
let served = [];
/** The ask that goes on: its AbortController. */
let running = null;
/** Asks of this visit, newest first: `{question, media, keep, look, model, answer, whole, pictures}`. */
let asked = [];
/** The ask whose answer is shown, and which of its pictures. */
let shown = null;
let selected = 0;
let resting = 0;

// ---- models, key and state ----

async function loadModels() {
  try {
    served = await models();
  } catch (error) {
    return showError(error);
  }
  $("key-form").hidden = true;
  $("model").replaceChildren(...served.map((model) => element("option", { value: model.id, textContent: model.id })));
  $("model-choice").hidden = served.length < 2;
  $("model-name").hidden = served.length > 1;
  showModel();
}

function takeKey() {
  useKey($("key").value);
  $("key").value = "";
  hideError();
  loadModels();
}

function model() {
  return served.find((one) => one.id === $("model").value);
}

function showModel() {
  const chosen = model();
  $("model-name").textContent = chosen ? `${chosen.id}, ${chosen.foveate.precision}` : "";
  showKeep();
}

async function poll() {
  if (!document.hidden) {
    const state = await serverState();
    if (!running) showStatus(...(STATES[state] ?? [state, "trouble"]));
  }
  setTimeout(poll, POLL_MS);
}

function showStatus(text, state) {
  const place = $("status");
  if (place.textContent === text) return; // said once
  place.textContent = text;
  place.dataset.state = state;
}

function showError(error) {
  if (error instanceof ServerError && error.status === 401) {
    const first = $("key-form").hidden;
    $("key-form").hidden = false;
    $("key").focus();
    if (first) return; // the form says what is wanted
  }
  if (!(error instanceof ServerError)) console.error(error);
  $("trouble").hidden = false;
  $("error").textContent = error.message;
}

function hideError() {
  $("trouble").hidden = true;
  $("error").textContent = "";
}

// ---- images and videos ----

async function take(files) {
  hideError();
  const wrong = files.find((file) => !kindOf(file));
  if (!files.length) return;
  if (wrong) return showError(new ServerError(`${wrong.name} is neither an image nor a video. Take a PNG, JPEG, WebP or MP4 file.`));
  for (const one of media) URL.revokeObjectURL(one.preview);
  media = await Promise.all(files.map(opened));
  shown = null;
  selected = 0;
  showPictures();
  $("question").focus();
}

function kindOf(file) {
  return ["image", "video"].find((kind) => file.type.startsWith(`${kind}/`));
}

async function opened(file) {
  const [url, kind, preview] = [await dataAddress(file), kindOf(file), URL.createObjectURL(file)];
  return { kind, url, preview, name: file.name, image: kind === "image" ? await loaded(preview) : null };
}

function dataAddress(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ServerError(`${file.name} can't be read: ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}

/** The image, or null where this browser can't show it; the server may still read it. */
async function loaded(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    return image;
  } catch {
    return null;
  }
}

// ---- asking ----

function ready() {
  return media.length > 0 && $("question").value.trim() !== "";
}

async function start() {
  hideError();
  clearTimeout(resting);
  if (!media.length) return showError(new ServerError("There is no picture yet. Drop, paste or choose an image or a video."));
  if (!ready()) return showError(new ServerError("There is no question yet. Type one."));
  running?.abort();
  const controller = (running = new AbortController());
  const entry = {
    question: $("question").value.trim(), media, keep: Number($("keep").value), look: $("look").checked, model: $("model").value,
    answer: null, whole: null, pictures: null,
  };
  entry.whole = asked.find((one) => one.whole && sameQuestion(one, entry))?.whole ?? null;
  begin(entry);
  try {
    await answerBoth(entry, controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
  if (running === controller) finish(entry, controller.signal.aborted); // else another ask took its place
}

async function answerBoth(entry, signal) {
  const own = { keep: entry.keep, explain: true, ...(entry.look && { encode: "auto" }) };
  entry.answer = await stream(entry, own, $("answer"), signal);
  entry.pictures = await picturesOf(entry.answer.report);
  asked = [entry, ...asked].slice(0, HISTORY);
  show(entry, true);
  if (!$("compare").checked || isWhole(entry) || entry.whole) return;
  entry.whole = await stream(entry, { keep: 1 }, $("whole"), signal);
  show(entry);
}

async function stream(entry, own, place, signal) {
  place.classList.add("waiting");
  place.ariaBusy = "true"; // a screen reader reads the answer once, when it is whole
  showStatus("waiting for the first token", "waiting");
  const grow = (text) => {
    showStatus("running", "running");
    place.classList.remove("waiting");
    place.textContent = text;
  };
  try {
    return await ask(bodyOf(entry, own), grow, signal);
  } finally {
    place.classList.remove("waiting");
    place.ariaBusy = "false";
  }
}

function bodyOf(entry, own) {
  const part = ({ kind, url }) => ({ type: `${kind}_url`, [`${kind}_url`]: { url } });
  const content = [...entry.media.map(part), { type: "text", text: entry.question }];
  return { ...(entry.model && { model: entry.model }), messages: [{ role: "user", content }], foveate: own };
}

function sameQuestion(one, other) {
  return one.question === other.question && one.media === other.media && one.model === other.model;
}

function isWhole(entry) {
  return entry.keep === 1 && !entry.look;
}

function begin(entry) {
  $("stop").disabled = false;
  showTexts(entry);
  showFigures(null, entry.whole?.report ?? null, nameOf(entry));
}

function finish(entry, stopped) {
  running = null;
  $("stop").disabled = true;
  showStatus(stopped ? "stopped" : "ready", "ready");
  if (entry.answer) return;
  shown = null; // what the picture showed was about another answer
  showPictures();
}

/** Asks again where only keep (or how the tower looks) changed since the answer that is shown. */
function askAgain() {
  clearTimeout(resting);
  const last = asked[0];
  const now = { question: $("question").value.trim(), media, model: $("model").value };
  if ($("again").checked && last && sameQuestion(last, now)) resting = setTimeout(start, SETTLE_MS);
}

// ---- showing ----

function show(entry, fade = false) {
  shown = entry;
  selected = Math.min(selected, entry.pictures.length - 1);
  showTexts(entry);
  showFigures(entry.answer.report, entry.whole?.report ?? null, nameOf(entry));
  showPictures(fade);
  showHistory();
}

function nameOf(entry) {
  return `keep ${entry.keep}${entry.look ? ", look first" : ""}`;
}

function showTexts(entry) {
  $("answer-name").textContent = nameOf(entry);
  $("answer").textContent = entry.answer?.text ?? "";
  $("whole-name").textContent = isWhole(entry) ? "keep 1: the answer above" : "keep 1, asked second";
  $("whole").textContent = entry.whole?.text ?? "";
  const both = entry.answer && entry.whole && !isWhole(entry);
  const same = both && entry.answer.text === entry.whole.text;
  $("same").hidden = !both;
  $("same").textContent = same ? "same as keep 1" : "not the same as keep 1";
  $("same").dataset.same = same ? "yes" : "no";
}

/** The pictures as the model saw them, each with what was decided about its tokens. */
async function picturesOf(report) {
  const { kept, scores, pictures } = report.explain;
  const stays = new Set(kept);
  const heat = scores && heatScale(scores);
  return Promise.all(pictures.map(async ({ image, rows, columns, tokens, seconds }, number) => ({
    image: await loaded(image),
    rows,
    columns,
    kept: tokens.map((token) => stays.has(token)),
    heat: heat && tokens.map((token) => heat[token]),
    name: seconds === null ? `image ${number + 1}` : `${seconds.toFixed(1)} s`,
  })));
}

function showPictures(fade = false) {
  const pictures = shown?.pictures ?? media;
  $("views").disabled = !shown;
  const scores = document.querySelector('[name="view"][value="scores"]');
  scores.disabled = !pictures[selected]?.heat;
  if (scores.disabled && scores.checked) document.querySelector('[name="view"][value="kept"]').checked = true;
  showStage(pictures[selected], fade);
  showStrip(pictures);
}

function showStage(picture, fade) {
  const film = picture?.kind === "video";
  $("invitation").hidden = Boolean(picture?.image || film);
  $("canvas").hidden = !picture?.image;
  $("video").hidden = !film;
  if (film && $("video").getAttribute("src") !== picture.preview) $("video").src = picture.preview;
  if (!film) $("video").pause();
  if (picture && !picture.image && !film) $("invitation").textContent = `This browser can't show ${picture.name}. The server may read it.`;
  if (picture?.image) draw($("canvas"), picture, view(), fade);
  showCaption(picture);
}

function showCaption(picture) {
  const canvas = $("canvas");
  if (!picture) return;
  canvas.ariaLabel = picture.kept ? `${picture.name}: ${counted(picture)}` : `Your image ${picture.name}`;
  canvas.dataset.kept = picture.kept ? picture.kept.filter(Boolean).length : "";
  const report = shown?.answer.report;
  const all = report && `${report.kept_tokens} of ${report.visual_tokens} visual tokens kept`;
  const here = shown?.pictures.length > 1 ? `; ${picture.name}: ${counted(picture)}` : "";
  $("caption").textContent = report ? `${all}${here}.` : media.map((one) => one.name).join(", ");
}

function counted(picture) {
  return `${picture.kept.filter(Boolean).length} of ${picture.kept.length} kept`;
}

function view() {
  return document.querySelector('[name="view"]:checked').value;
}

/** Frames and several images side by side. A video's place is there before its frames are, so that nothing moves. */
function showStrip(pictures) {
  $("strip").hidden = pictures.length < 2 && !media.some((one) => one.kind === "video");
  if ($("strip").hidden) return;
  const canvases = pictures.map(() => element("canvas", { ariaHidden: "true" }));
  const items = pictures.map((picture, number) => {
    const told = picture.kept ? `${picture.name}: ${picture.kept.filter(Boolean).length} kept` : picture.name;
    const button = element("button", { type: "button", ariaPressed: `${number === selected}`, onclick: () => select(number) }, canvases[number], told);
    return element("li", {}, button);
  });
  $("strip").replaceChildren(...items);
  pictures.forEach((picture, number) => picture.image && draw(canvases[number], picture, view()));
}

function select(number) {
  selected = number;
  showPictures();
  $("strip").querySelectorAll("button")[number].focus();
}

function showHistory() {
  const items = asked.map((entry) => {
    const facts = `${nameOf(entry)}, first token ${milliseconds(entry.answer.report.timings.ttft_ms)}`;
    const button = element("button", { type: "button", onclick: () => recall(entry) },
      element("b", { textContent: `${entry.question} ${entry.answer.text}` }), element("span", { textContent: facts }));
    if (entry === shown) button.ariaCurrent = "true";
    return element("li", {}, button);
  });
  $("history").replaceChildren(...items);
}

/** Shows an ask of before, and takes its pictures and question back so that it can be asked anew. */
function recall(entry) {
  stop();
  media = entry.media;
  selected = 0;
  $("question").value = entry.question;
  $("keep").value = entry.keep;
  $("look").checked = entry.look;
  $("model").value = entry.model;
  showModel();
  show(entry);
  $("history").querySelectorAll("button")[asked.indexOf(entry)].focus();
}

function stop() {
  clearTimeout(resting);
  running?.abort();
}

function showKeep() {
  const keep = Number($("keep").value);
  $("keep-value").textContent = keep.toFixed(2);
  const measured = Object.entries(model()?.foveate.retained ?? {}).map(([ratio, share]) => [Number(ratio), share]);
  const [ratio, share] = measured.filter(([ratio]) => ratio <= keep).sort(([a], [b]) => b - a)[0] ?? [];
  $("retained").textContent = ratio ? `Measured at keep ${ratio}: ${(100 * share).toFixed(1)} % of right answers stay right.` : "";
}

// ---- what the user does ----

function listen() {
  $("ask-form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    start();
  });
  $("stop").addEventListener("click", () => { stop(); $("ask").focus(); });
  $("dismiss").addEventListener("click", () => { hideError(); $("question").focus(); });
  $("keep").addEventListener("input", showKeep);
  $("keep").addEventListener("change", askAgain);
  $("look").addEventListener("change", askAgain);
  $("model").addEventListener("change", showModel);
  $("views").addEventListener("change", () => showPictures());
  $("key-form").addEventListener("submit", (event) => { event.preventDefault(); takeKey(); });
  $("file").addEventListener("change", () => takeAll($("file").files));
  document.addEventListener("paste", (event) => takeAll(event.clipboardData.files));
  for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, drag);
  let resize = 0;
  addEventListener("resize", () => { cancelAnimationFrame(resize); resize = requestAnimationFrame(() => showPictures()); });
}

function drag(event) {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault(); // else the browser leaves the page for the file
  $("stage").classList.toggle("over", event.type === "dragover");
  if (event.type === "drop") takeAll(event.dataTransfer.files);
}

function takeAll(files) {
  take([...files]).catch(showError);
}

listen();
showFigures(null, null, nameOf({ keep: Number($("keep").value) }));
showKeep();
loadModels();
poll();
