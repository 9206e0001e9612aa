// Accuracy against a cost: every setting a mark that can be hovered and reached by keys, the front, error bars.
function scatterPlot(state, seen) {
  const place = byId("scatter");
  const axis = axisOf(state.axis), values = DATA.values[state.at][state.axis], shares = DATA.accuracy[state.task];
  const points = values.map((_, n) => n).filter((n) => values[n] != null && shares[n] != null);
  const front = DATA.fronts[state.at][state.axis][state.task];
  const height = place.clientWidth < 520 ? 340 : 460;
  const { svg, width } = canvas(place, height, `${DATA.tasks[state.task]}: accuracy against ${axis.label}, ${points.length} settings`, true);
  if (!points.length) return void svg.append(word(width / 2, height / 2, "not measured", "middle", "label"));
  const bars = new Set(state.bars === "all" ? points : state.bars === "front" ? [...front, DATA.full] : []);
  const costs = points.map((n) => values[n] / axis.divide);
  const heights = points.flatMap((n) => (bars.has(n) ? shares[n] : [shares[n][0]])).filter((one) => one != null);
  const left = 46, right = width - 14, top = 30, bottom = height - 46;
  const x = scale(...range(costs), left, right), y = scale(...range(heights, { floor: 0, ceiling: 1 }), bottom, top);
  yAxis(svg, y, left, right, "accuracy", (tick, all) => `${tickText(tick * 100, all.map((one) => one * 100))} %`);
  xAxis(svg, x, top, bottom, labelOf(axis), width < 520 ? 4 : 8);
  const at = (n) => [x(values[n] / axis.divide), y(shares[n][0])];
  if (front.length) {
    const rises = DATA.rises[state.at][state.axis][state.task];
    front.forEach((n, i) => {
      const [a, b] = at(n), next = i + 1 < front.length ? at(front[i + 1]) : [right, b];
      svg.append(shape("path", { d: `M${a} ${b}H${next[0]}V${next[1]}`, class: rises[i + 1]?.[1] ? "front unsure" : "front" }));
    });
  }
  const spread = state.axis === "total_ms" ? DATA.spread[state.at] : [];
  for (const n of bars) {
    if (!points.includes(n)) continue;
    const [a, b] = at(n);
    if (shares[n][1] != null) whisker(svg, a, y(Math.max(shares[n][1], y.low)), y(Math.min(shares[n][2], y.high)));
    if (spread[n]) svg.append(shape("path", { d: `M${Math.max(left, x(spread[n][0] / axis.divide))} ${b}H${Math.min(right, x(spread[n][1] / axis.divide))}`, class: "bar" }));
  }
  const knob = DATA.knobs.find((one) => one.key === state.colour);
  const order = [...points].sort((a, b) => values[a] - values[b] || shares[a][0] - shares[b][0]);
  const marks = new Map();
  for (const n of order) {
    const [a, b] = at(n), name = pointName(n);
    const mark = shape("g", {
      class: "point", transform: `translate(${a.toFixed(1)} ${b.toFixed(1)})`, role: "button", tabindex: -1, "data-n": n,
      "aria-label": [name, ...pointFacts(n, state).map((pair) => pair.join(" "))].join(", "),
    }, shape("circle", { r: 12, class: "halo" }), shape("path", style(knob.at[n], knob.values.length)));
    if (n === DATA.full) mark.append(shape("circle", { r: 9.5, class: "ring" }));
    if (!seen.has(n)) mark.classList.add("dim");
    const tell = () => showTip(mark, name, pointFacts(n, state));
    mark.addEventListener("mouseenter", tell);
    mark.addEventListener("focus", tell);
    mark.addEventListener("mouseleave", hideTip);
    mark.addEventListener("blur", hideTip);
    mark.addEventListener("click", () => state.show(n));
    mark.addEventListener("keydown", (event) => move(event, n));
    marks.set(n, mark);
    svg.append(mark);
  }
  marks.get(order.includes(state.last) ? state.last : order[0]).setAttribute("tabindex", 0);

  function move(event, n) {
    const i = order.indexOf(n);
    const next = { ArrowRight: order[i + 1], ArrowLeft: order[i - 1], Home: order[0], End: order.at(-1) }[event.key];
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const step = event.key === "ArrowUp" ? 1 : -1, ranked = [...front];
      const here = ranked.indexOf(n);
      const goal = here < 0 ? ranked.find((one) => values[one] >= values[n]) ?? ranked.at(-1) : ranked[here + step];
      if (goal != null) to(goal);
    } else if (event.key === "Enter" || event.key === " ") state.show(n);
    else if (next != null) to(next);
    else return;
    event.preventDefault();

    function to(other) {
      marks.get(n).setAttribute("tabindex", -1);
      marks.get(other).setAttribute("tabindex", 0);
      marks.get(other).focus();
      state.last = other;
    }
  }

  nameFront(svg, front, at, points, { left, right, top, bottom });
  const entries = knob.values.map((value, n) => [shape("path", style(n, knob.values.length)), `${knob.key} ${value}`]);
  entries.push([shape("path", { d: "M-7 4H0V-4H7", class: "front", fill: "none" }), "the front"]);
  if (DATA.rises[state.at][state.axis][state.task].some((rise) => rise?.[1])) entries.push([shape("path", { d: "M-7 4H0V-4H7", class: "front unsure", fill: "none" }), "a rise within the error"]);
  entries.push([shape("circle", { r: 6, fill: "none", stroke: "currentColor" }), "the full model"]);
  if (bars.size) entries.push([shape("path", { d: "M0-7V7M-3-7h6M-3 7h6", class: "bar", fill: "none" }), "95 % interval"]);
  if (bars.size && spread.length) entries.push([shape("path", { d: "M-8 0H8", class: "bar", fill: "none" }), "least to most of the runs"]);
  legend(byId("scatter-legend"), entries);
}

function pointName(n) {
  return DATA.names[n] + (n === DATA.full ? " (full)" : "");
}

/** Knobs, accuracy and all costs of a setting, as pairs of words. */
function pointFacts(n, state) {
  const share = DATA.accuracy[state.task][n];
  const pairs = DATA.knobs.map((knob) => [knob.label, knob.values[knob.at[n]]]);
  if (share) {
    pairs.push(["accuracy", percent(share[0])]);
    if (share[1] != null) pairs.push(["95 % interval", `${(100 * share[1]).toFixed(1)} to ${percent(share[2])}`]);
  }
  for (const axis of DATA.axes.filter((one) => /_ms$|bytes$/.test(one.key) || one.key === state.axis)) {
    const value = DATA.values[state.at][axis.key][n];
    if (value != null) pairs.push([axis.label, shown(axis, value)]);
  }
  return pairs;
}

/** Names beside marks of the front where they meet neither marks nor each other. */
function nameFront(svg, front, at, points, frame) {
  const taken = points.map((n) => { const [a, b] = at(n); return [a - 6, b - 6, a + 6, b + 6]; });
  for (let i = 1; i < front.length; i += 1) { // the front's own line
    const [a, b] = at(front[i - 1]), [c, d] = at(front[i]);
    taken.push([a, b - 2, c, b + 2], [c - 2, d, c + 2, b]);
  }
  for (const n of [...front].reverse()) {
    const [a, b] = at(n);
    const text = word(0, 0, DATA.names[n], "start", "name");
    svg.append(text);
    const wide = text.getComputedTextLength(), high = 12;
    const spots = [[a - wide - 9, b - 8], [a - wide / 2, b - 14], [a - wide - 10, b + 4], [a + 10, b + 15], [a + 10, b + 4], [a - wide / 2, b + 22]];
    const free = spots.find(([p, q]) => {
      const box = [p - 2, q - high, p + wide + 2, q + 3];
      return box[0] > frame.left && box[2] < frame.right && box[1] > frame.top - 8 && box[3] < frame.bottom
        && taken.every((o) => box[2] < o[0] || box[0] > o[2] || box[3] < o[1] || box[1] > o[3]);
    });
    if (!free) { text.remove(); continue; }
    text.setAttribute("x", free[0]);
    text.setAttribute("y", free[1]);
    taken.push([free[0] - 2, free[1] - high, free[0] + wide + 2, free[1] + 3]);
  }
}

const riseWords = (rise) => (rise ? `${rise[0] < 0 ? "" : "+"}${(100 * rise[0]).toFixed(1)}${rise[1] ? ", within the error" : ""}` : "–");

/** The table under the plot, for the front that the plot shows. */
function frontTable(state) {
  const axis = axisOf(state.axis), values = DATA.values[state.at][state.axis], shares = DATA.accuracy[state.task];
  const table = document.querySelector("#front table");
  document.querySelectorAll("#front .scroll").forEach((one, n) => { one.hidden = n > 0; });
  const where = DATA.workloads.length > 1 ? ` of ${state.at}` : "";
  const caption = `The front by ${axis.label}${where}, ${DATA.tasks[state.task]}`;
  table.caption.textContent = caption;
  table.closest(".scroll").setAttribute("aria-label", caption);
  table.tHead.rows[0].cells[5].textContent = labelOf(axis);
  const rises = DATA.rises[state.at][state.axis][state.task];
  const rows = DATA.fronts[state.at][state.axis][state.task].map((n, step) => {
    const share = shares[n], whole = values[DATA.full];
    const cells = [...DATA.knobs.map((knob) => knob.values[knob.at[n]]), significant(values[n] / axis.divide),
      whole ? significant(values[n] / whole) : "–", percent(share[0]),
      share[1] == null ? "–" : `${(100 * share[1]).toFixed(1)} to ${percent(share[2])}`, riseWords(rises[step])];
    return element("tr", {}, element("th", { scope: "row" }, pointName(n)),
      ...cells.map((text, i) => element("td", { class: i === 3 ? null : "num" }, text)));
  });
  table.tBodies[0].replaceChildren(...rows);
}
