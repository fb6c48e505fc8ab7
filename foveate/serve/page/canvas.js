// Draws pictures with what was decided about their visual tokens.

const VEIL = "rgba(12, 15, 20, 0.78)"; // over a dropped token
const OUTLINE = "rgb(255, 190, 60)";
const FADE_MS = 350;
// prettier-ignore
const INFERNO = [[0, 0, 4], [32, 12, 74], [86, 16, 110], [138, 34, 106], [188, 55, 84], [228, 90, 49], [249, 142, 9], [249, 203, 53], [252, 255, 164]];
const fading = new WeakMap();

/**
 * Draws a picture, sharp in the place that the canvas has, and lets its kept tokens light up.
 *
 * @param canvas whose width and height are set.
 * @param picture `image`, and where something was decided: `rows`, `columns`, `kept` (a boolean for each token) and `heat` (0 to 1
 *   for each, null where there are no scores).
 * @param view "kept", "scores" or "picture".
 * @param fade whether the veil comes slowly.
 */
export function draw(canvas, picture, view, fade = false) {
  cancelAnimationFrame(fading.get(canvas));
  fit(canvas, picture.image);
  const still = !fade || view !== "kept" || matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (still) return paint(canvas, picture, view, 1);
  const start = performance.now();
  const step = (now) => {
    const share = Math.min(1, Math.max(0, (now - start) / FADE_MS));
    paint(canvas, picture, view, share);
    if (share < 1) fading.set(canvas, requestAnimationFrame(step));
  };
  step(start);
}

/** Scores on the scale of a heat map: as `Answer.explain` draws them, the root of the distance to the lowest. */
export function heatScale(scores) {
  const lowest = scores.reduce((a, b) => Math.min(a, b));
  const highest = scores.reduce((a, b) => Math.max(a, b));
  return scores.map((score) => Math.sqrt((score - lowest) / (highest - lowest || 1)));
}

function fit(canvas, image) {
  const place = canvas.getBoundingClientRect();
  const factor = Math.min(place.width / image.naturalWidth, place.height / image.naturalHeight) * devicePixelRatio;
  canvas.width = Math.max(1, Math.round(image.naturalWidth * factor));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * factor));
}

function paint(canvas, picture, view, share) {
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.globalAlpha = 1;
  context.drawImage(picture.image, 0, 0, canvas.width, canvas.height);
  if (!picture.kept || view === "picture") return;
  if (view === "scores" && picture.heat) paintHeat(context, picture);
  else paintVeil(context, picture, share);
  context.globalAlpha = share;
  paintOutline(context, picture);
}

function paintVeil(context, picture, share) {
  context.globalAlpha = share;
  context.fillStyle = VEIL;
  for (const { number, left, top, right, bottom } of cells(context.canvas, picture)) {
    if (!picture.kept[number]) context.fillRect(left, top, right - left, bottom - top);
  }
}

function paintHeat(context, { rows, columns, heat }) {
  const small = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  heat.forEach((value, number) => pixels.data.set([...colour(value), 255], 4 * number));
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.globalAlpha = 0.8;
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}

function colour(value) {
  const place = value * (INFERNO.length - 1);
  const below = Math.min(Math.floor(place), INFERNO.length - 2);
  return INFERNO[below].map((low, channel) => low + (place - below) * (INFERNO[below + 1][channel] - low));
}

/** A line between tokens that stayed and tokens that did not. */
function paintOutline(context, picture) {
  const { rows, columns, kept } = picture;
  const stays = (row, column) => row >= 0 && row < rows && column >= 0 && column < columns && kept[row * columns + column];
  context.strokeStyle = OUTLINE;
  context.lineWidth = Math.max(1, Math.min(3 * devicePixelRatio, context.canvas.width / columns / 6));
  context.beginPath();
  for (const { number, row, column, left, top, right, bottom } of cells(context.canvas, picture)) {
    if (!kept[number]) continue;
    if (!stays(row - 1, column)) line(context, left, top, right, top);
    if (!stays(row + 1, column)) line(context, left, bottom, right, bottom);
    if (!stays(row, column - 1)) line(context, left, top, left, bottom);
    if (!stays(row, column + 1)) line(context, right, top, right, bottom);
  }
  context.stroke();
}

function line(context, fromX, fromY, toX, toY) {
  context.moveTo(fromX, fromY);
  context.lineTo(toX, toY);
}

/** The tokens in whole pixels, so that neighbours neither overlap nor leave a gap. */
function* cells(canvas, { rows, columns }) {
  const across = (column) => Math.round((column * canvas.width) / columns);
  const down = (row) => Math.round((row * canvas.height) / rows);
  for (let number = 0; number < rows * columns; number++) {
    const row = Math.floor(number / columns);
    const column = number % columns;
    yield { number, row, column, left: across(column), top: down(row), right: across(column + 1), bottom: down(row + 1) };
  }
}
