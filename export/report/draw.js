// What all plots need: elements, scales, axes, numbers as people read them, one tooltip. Text is set as text, never as
// markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}

function shape(name, attributes = {}, ...inside) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value != null) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

const word = (x, y, text, anchor = "middle", kind = "") => shape("text", { x, y, "text-anchor": anchor, class: kind }, text);

function significant(value) {
  if (value === 0 || Math.abs(value) >= 100) return Math.round(value).toLocaleString("en-US");
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(Number(value.toPrecision(3))))));
  return value.toFixed(digits);
}
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const axisOf = (key) => DATA.axes.find((axis) => axis.key === key);
const shown = (axis, value) => (value == null ? "–" : `${significant(value / axis.divide)} ${axis.unit}`.trim());
const labelOf = (axis) => axis.label + (axis.unit ? `, ${axis.unit}` : "");

function scale(low, high, from, to) {
  const made = (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  return Object.assign(made, { low, high });
}

/** Round numbers from low to high, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) found.push(n * step + 0);
  return found;
}

/** A little more than the values' range; from 0 where that is near. */
function range(values, { floor = -Infinity, ceiling = Infinity, zero = false } = {}) {
  let low = Math.min(...values), high = Math.max(...values);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  low = zero || (low >= 0 && low < 0.25 * high) ? Math.min(0, low) : low - room;
  return [Math.max(low, floor), Math.min(high + room, ceiling)];
}

function tickText(value, all) {
  const step = all.length > 1 ? Math.abs(all[1] - all[0]) : Math.abs(value) || 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const needed = Number((step * 10 ** digits).toFixed(6)) % 1 ? digits + 1 : digits;
  return value.toLocaleString("en-US", { minimumFractionDigits: needed, maximumFractionDigits: needed });
}

/** An empty drawing as wide as its place. `interactive`: marks in it take the focus, so it is no picture. */
function canvas(place, height, label, interactive = false) {
  const width = Math.max(260, place.clientWidth || 700);
  const svg = shape("svg", {
    viewBox: `0 0 ${width} ${height}`, role: interactive ? "group" : "img", "aria-label": label,
  });
  place.replaceChildren(svg);
  return { svg, width };
}

function yAxis(svg, y, left, right, label, words = tickText, count = 5) {
  const found = ticks(y.low, y.high, count);
  for (const tick of found) {
    svg.append(shape("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), class: "grid" }));
    svg.append(word(left - 8, y(tick) + 4, words(tick, found), "end"));
  }
  svg.append(word(left - 8, y(y.high) - 10, label, "start", "label"));
  svg.lastChild.setAttribute("x", 0);
}

function xAxis(svg, x, top, bottom, label, count) {
  const found = ticks(x.low, x.high, count);
  for (const tick of found) {
    svg.append(shape("line", { x1: x(tick), x2: x(tick), y1: top, y2: bottom, class: "grid" }));
    svg.append(word(x(tick), bottom + 18, tickText(tick, found)));
  }
  svg.append(shape("line", { x1: x(x.low), x2: x(x.high), y1: bottom, y2: bottom, class: "axis" }));
  svg.append(word((x(x.low) + x(x.high)) / 2, bottom + 37, label, "middle", "label"));
}

function whisker(svg, x, y0, y1, kind = "bar") {
  svg.append(shape("path", { d: `M${x} ${y0}V${y1}M${x - 3} ${y0}h6M${x - 3} ${y1}h6`, class: kind, fill: "none" }));
}

const tip = element("div", { class: "tip", "aria-hidden": "true", hidden: true });

/** Show `heading` and pairs beside a mark of a plot; the same words are its name for screen readers. */
function showTip(mark, heading, pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) list.append(element("dt", {}, name), element("dd", {}, value));
  tip.replaceChildren(element("strong", {}, heading), list);
  tip.hidden = false;
  document.body.append(tip);
  const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const right = box.right + 12 + own.width < document.documentElement.clientWidth;
  const left = right ? box.right + 12 : Math.max(8, box.left - own.width - 12);
  const top = Math.min(Math.max(8, box.top - own.height / 2), Math.max(8, innerHeight - own.height - 8));
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${top + scrollY}px`;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

const sentence = (words) => (words.length > 1 ? words[0].toUpperCase() + words.slice(1) : words);

/** A choice with a label; `options` are [value, text]. */
function choice(place, label, options, value, chosen) {
  const select = element("select", {}, ...options.map(([key, text]) => element("option", { value: key }, text)));
  select.value = value;
  select.addEventListener("change", () => chosen(select.value));
  place.append(element("label", {}, sentence(label), select));
  return select;
}

function check(place, label, checked, changed) {
  const box = element("input", { type: "checkbox" });
  box.checked = checked;
  box.addEventListener("change", () => changed(box.checked));
  place.append(element("label", { class: "check" }, box, label));
  return box;
}

function legend(place, entries) {
  place.replaceChildren(element("ul", { class: "legend" }, ...entries.map(([mark, text]) => element("li", {},
    Object.assign(shape("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, mark)), text))));
}

const SHAPES = [
  "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z", "M-4.6-4.6h9.2v9.2h-9.2z", "M0-6L5.6 4.4h-11.2z", "M0-6.2L6.2 0L0 6.2L-6.2 0z",
  "M0 6L5.6-4.4h-11.2z", "M-2-5.6h4v3.6h3.6v4h-3.6v3.6h-4v-3.6h-3.6v-4h3.6z", "M0-6l5.7 4.1l-2.2 6.7h-7l-2.2-6.7z",
  "M0-6.4l1.7 4.2l4.5.3l-3.5 2.9l1.1 4.4l-3.8-2.4l-3.8 2.4l1.1-4.4l-3.5-2.9l4.5-.3z",
];
/** The colour and the shape of the nth of so many values: told apart by either. */
const style = (n, count) => ({ d: SHAPES[n % SHAPES.length], class: `s${count < 2 ? 3 : Math.round((n * 7) / (count - 1))}` });
