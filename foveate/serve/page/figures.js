// What an answer took: stage times as bars, and a table beside keep 1.

import { element } from "./dom.js";

const NOTHING = "–";
const ROWS = [
  ["visual tokens read", (report) => `${report.kept_tokens} of ${report.visual_tokens}`],
  ["computed by the vision tower", (report) => `${report.encoding?.encoded_tokens ?? report.visual_tokens}`],
  ["first token", (report) => milliseconds(report.timings.ttft_ms)],
  ["of it, after the vision tower", (report) => milliseconds(total(afterVision(report.timings)))],
  ["each further token", (report) => milliseconds(mean(report.timings.decode_ms))],
  ["KV cache", (report) => bytes(report.kv_bytes)],
  ["prompt tokens reused", (report) => `${report.reused_tokens}`],
];

/**
 * Shows what one answer took, and beside it what keep 1 took.
 *
 * @param report the `foveate` of an answer; null before there is one.
 * @param whole that of keep 1; null where it was not asked.
 * @param name what the first column is called.
 */
export function showFigures(report, whole, name) {
  document.getElementById("figures-name").textContent = name;
  const cell = (told, from) => element("td", { textContent: from ? told(from) : NOTHING });
  const row = ([title, told]) =>
    element("tr", {}, element("th", { scope: "row", textContent: title }), cell(told, report), cell(told, whole));
  document.getElementById("figures").replaceChildren(...ROWS.map(row));
  showBars(report, whole, name);
  document.getElementById("remarks").textContent = remarks(report, whole).join(" ");
}

function showBars(report, whole, name) {
  const lines = [[name, report?.timings], ["keep 1", whole?.timings]];
  const longest = Math.max(...lines.map(([, timings]) => (timings ? total(stages(timings)) : 0)));
  document.getElementById("bars").replaceChildren(...lines.flatMap(([title, timings]) => bar(title, timings, longest)));
  const names = new Set(lines.flatMap(([, timings]) => (timings ? stages(timings).map(([stage]) => stage) : [])));
  const entry = (stage) => element("li", {}, painted(element("i"), stage), stage);
  document.getElementById("legend").replaceChildren(...[...names].map(entry));
}

function bar(title, timings, longest) {
  const figure = timings ? milliseconds(timings.ttft_ms) : NOTHING;
  const parts = timings ? stages(timings).map(([stage, time]) => segment(stage, time, longest)) : [];
  const told = timings ? stages(timings).map(([stage, time]) => `${stage} ${milliseconds(time)}`).join(", ") : "nothing yet";
  return [
    element("p", { className: "bar-name" }, element("span", { textContent: title }), element("span", { textContent: figure })),
    element("div", { className: "bar", role: "img", ariaLabel: `${title}: ${told}` }, ...parts),
  ];
}

function segment(stage, time, longest) {
  const part = painted(element("span", { title: `${stage}: ${milliseconds(time)}` }), stage);
  part.style.width = `${(100 * time) / longest}%`;
  return part;
}

function painted(node, stage) {
  node.style.background = `var(--stage-${stage}, var(--muted))`;
  return node;
}

/** Names and milliseconds in the order of the server; those that took no time are left out. */
function stages(timings) {
  const single = Object.entries(timings).filter(([name, time]) => typeof time === "number" && !/^(ttft|tpot)_ms$/.test(name));
  return single.filter(([, time]) => time > 0).map(([name, time]) => [name.replace(/_ms$/, ""), time]);
}

function afterVision(timings) {
  const all = stages(timings);
  return all.slice(all.findLastIndex(([stage]) => stage === "vision") + 1);
}

/** What makes the two columns unlike but keep. */
function remarks(report, whole) {
  const said = ["Milliseconds of each stage up to the first token, as the server measured them."];
  if (report?.reason) said.push(`Why so many tokens: ${report.reason}.`);
  if (report?.encoding?.reason) said.push(`Why the tower computed so many: ${report.encoding.reason}.`);
  const [first, second] = [report?.timings.vision_ms, whole?.timings.vision_ms];
  // A tenth: no budget makes the tower itself so much faster.
  if (second < first / 10) said.push("For keep 1 the encoded picture came from the server's cache: compare what comes after the vision tower.");
  if (first < second / 10) said.push("Here the encoded picture came from the server's cache, and keep 1 was asked before it was there: compare what comes after the vision tower.");
  if (report && whole && report.reused_tokens !== whole.reused_tokens) said.push("Prompt tokens that the server has keys and values of are not read again: compare prefill only where as many were reused.");
  return said;
}

function total(parts) {
  return parts.reduce((sum, [, time]) => sum + time, 0);
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : NaN;
}

/** A time in words; a dash for none. */
export function milliseconds(time) {
  if (!Number.isFinite(time)) return NOTHING;
  return time < 100 ? `${time.toFixed(1)} ms` : `${Math.round(time).toLocaleString("en")} ms`;
}

function bytes(count) {
  const [unit, size] = count < 1024 ** 2 ? ["KiB", 1024] : ["MiB", 1024 ** 2];
  return `${(count / size).toFixed(1)} ${unit}`;
}
