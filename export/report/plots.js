// Lines along a knob, stages stacked, scores as bars. The tables below them have the same numbers.
function knobLine(place, knob, held, heading, read, { percentages = false } = {}) {
  const points = DATA.names.map((_, n) => n)
    .filter((n) => DATA.knobs.every((one, i) => one === knob || one.at[n] === held[i]))
    .sort((a, b) => knob.at[a] - knob.at[b]);
  const found = points.map((n) => [n, read(n)]).filter(([, value]) => value);
  const { svg, width } = canvas(place, 230, `${heading} against ${knob.label}, ${found.length} settings`);
  const left = 52, right = width - 18, top = 30, bottom = 184;
  svg.append(word((left + right) / 2, 222, knob.label, "middle", "label"));
  if (!found.length) return void svg.append(word(width / 2, 110, "no such settings", "middle"));
  const all = found.flatMap(([, value]) => value).filter((one) => one != null);
  const y = scale(...range(all, percentages ? { floor: 0, ceiling: 1 } : { zero: true }), bottom, top);
  const x = (n) => (knob.values.length < 2 ? (left + right) / 2 : left + 14 + ((right - left - 28) * knob.at[n]) / (knob.values.length - 1));
  yAxis(svg, y, left, right, heading, percentages ? (tick, ticks) => `${tickText(tick * 100, ticks.map((one) => one * 100))} %` : tickText, 4);
  svg.append(shape("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  knob.values.forEach((value, i) => {
    const n = knob.at.indexOf(i);
    svg.append(word(x(n), bottom + 18, value));
  });
  svg.append(shape("path", { class: "line", d: found.map(([n, value], i) => `${i ? "L" : "M"}${x(n)} ${y(value[0])}`).join("") }));
  for (const [n, value] of found) if (value[1] != null) whisker(svg, x(n), y(value[1]), y(value[2]));
  for (const [n, value] of found) {
    const mark = shape("g", {}, shape("circle", { cx: x(n), cy: y(value[0]), r: 4.5, class: "dot" }), shape("circle", { cx: x(n), cy: y(value[0]), r: 13, class: "hit" }));
    const words = percentages ? percent(value[0]) : significant(value[0]);
    hover(mark, () => [pointName(n), [[heading, words], ...(value[1] == null ? [] : [["95 % interval", `${(100 * value[1]).toFixed(1)} to ${percent(value[2])}`]])]]);
    svg.append(mark);
  }
}

function hover(mark, tell) {
  mark.addEventListener("mouseenter", () => showTip(mark, ...tell()));
  mark.addEventListener("mouseleave", hideTip);
}

function knobPlots(state) {
  const place = byId("knob-plots");
  const axis = axisOf(state.knobAxis), whole = DATA.accuracy[0];
  const changing = DATA.knobs.filter((one) => one.values.length > 1);
  const column = () => element("figure", {}, element("div", { class: "plot" }), element("div", { class: "plot" }));
  place.replaceChildren(...changing.map(column));
  changing.forEach((knob, i) => { // all places are there: each knows its width
    const [above, below] = place.children[i].children;
    if (whole.some(Boolean)) knobLine(above, knob, state.held, "accuracy", (n) => whole[n], { percentages: true });
    if (!axis) return;
    const values = DATA.values[state.at][axis.key];
    knobLine(below, knob, state.held, labelOf(axis), (n) => (values[n] == null ? null : [values[n] / axis.divide]));
  });
}

const STAGES = ["vision", "prefill", "decode"];

/** Milliseconds or FLOPs of each stage; decoding counts for all tokens behind the first. */
function stagesOf(n, at, kind) {
  const steps = DATA.workloads.find((one) => one.key === at).new - 1;
  return STAGES.map((stage) => (DATA.values[at][`${stage}_${kind}`]?.[n] ?? 0) * (stage === "decode" ? steps : 1));
}

function stagePlot(state, seen) {
  const place = byId("stages"), kind = state.stageKind, values = DATA.values[state.at];
  const measured = values[`prefill_${kind}`] ?? [];
  const first = DATA.fronts[state.at].total_ms ?? DATA.fronts[state.at].bytes ?? [];
  const front = new Set([...(first[0] ?? []), DATA.full]);
  const chosen = DATA.names.map((_, n) => n).filter((n) => measured[n] != null && (state.stageRows === "all" ? seen.has(n) : front.has(n)));
  const rows = chosen.map((n) => [n, stagesOf(n, state.at, kind)]);
  const sum = (parts) => parts.reduce((a, b) => a + b, 0);
  rows.sort((a, b) => sum(a[1]) - sum(b[1]));
  const most = Math.max(...rows.map(([, parts]) => sum(parts)), 0);
  const unit = kind === "ms" ? [1, "ms"] : [[1e12, "TFLOP"], [1e9, "GFLOP"], [1, "FLOP"]].find(([size]) => most >= size) ?? [1, "FLOP"];
  const step = 24, top = 6, bottom = top + step * rows.length + 4;
  const { svg, width } = canvas(place, bottom + 44, `Vision, prefill and decode of ${rows.length} settings, stacked, in ${unit[1]}`);
  if (!rows.length) return void svg.append(word(width / 2, 24, "not measured", "middle", "label"));
  const names = rows.map(([n]) => word(0, 0, pointName(n), "end", "label"));
  svg.append(...names);
  const left = Math.min(width * 0.45, Math.max(...names.map((one) => one.getComputedTextLength())) + 10), right = width - 62;
  const x = scale(0, most / unit[0], left, right);
  xAxis(svg, x, top, bottom, `${unit[1]} of the whole workload`, width < 520 ? 3 : 7);
  rows.forEach(([n, parts], i) => {
    const y = top + i * step + 4;
    names[i].setAttribute("x", left - 8);
    names[i].setAttribute("y", y + 12);
    let from = left;
    const mark = shape("g");
    parts.forEach((part, stage) => {
      const wide = x(part / unit[0]) - left;
      if (wide > 0) mark.append(shape("rect", { x: from, y, width: Math.max(wide - 1, 0.5), height: step - 8, class: STAGES[stage] }));
      from += wide;
    });
    hover(mark, () => [pointName(n), [...STAGES.map((stage, s) => [stage, `${significant(parts[s] / unit[0])} ${unit[1]}`]), ["all", `${significant(sum(parts) / unit[0])} ${unit[1]}`]]]);
    svg.append(mark, word(from + 6, y + 12, significant(sum(parts) / unit[0]), "start"));
  });
  legend(byId("stage-legend"), STAGES.map((stage) => [shape("rect", { x: -7, y: -7, width: 14, height: 14, class: stage }), stage]));
}

function scorePlot(state) {
  const place = byId("scores"), { blocks, unit, higher } = DATA.scores;
  const rows = [...blocks];
  if (state.scoreOrder === "score") rows.sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const { svg, width } = canvas(place, 300, `${unit} of ${rows.length} blocks; ${higher} is higher`);
  const left = 52, right = width - 8, top = 30, bottom = 254;
  const y = scale(...range(rows.flatMap((row) => row.slice(1, 4)).filter((one) => one != null), { zero: true }), bottom, top);
  yAxis(svg, y, left, right, unit);
  const step = (right - left) / rows.length, every = Math.ceil(22 / step);
  svg.append(shape("defs", {}, shape("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    shape("rect", { width: 6, height: 6, class: "held" }), shape("rect", { width: 2, height: 6, fill: "var(--ink)", opacity: 0.55 }))));
  rows.forEach(([block, value, low, high, held], i) => {
    const middle = left + step * (i + 0.5), wide = Math.min(step * 0.72, 46);
    const bar = shape("rect", { x: middle - wide / 2, width: wide, y: Math.min(y(0), y(value)), height: Math.abs(y(value) - y(0)), class: held ? null : "score", fill: held ? "url(#hatch)" : null });
    hover(bar, () => [`block ${block}`, [["score", significant(value)], ...(low == null ? [] : [["interval", `${significant(low)} to ${significant(high)}`]]), ...(held ? [["kept by default", "yes"]] : [])]]);
    svg.append(bar);
    if (low != null) whisker(svg, middle, y(low), y(high));
    if (i % every === 0) svg.append(word(middle, bottom + 18, block));
  });
  svg.append(shape("line", { x1: left, x2: right, y1: y(0), y2: y(0), class: "axis" }));
  svg.append(word((left + right) / 2, 292, "block", "middle", "label"));
  legend(byId("score-legend"), [[shape("rect", { x: -7, y: -7, width: 14, height: 14, class: "score" }), "may be dropped"],
    [shape("rect", { x: -7, y: -7, width: 14, height: 14, fill: "url(#hatch)" }), "first and last: kept by default"]]);
}
