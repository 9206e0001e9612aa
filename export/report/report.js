// The page's state, its controls, and what is drawn anew when one of them changes or the window does.
{
  const state = {
    at: DATA.workloads[0].key, axis: Object.keys(Object.values(DATA.fronts)[0])[0], task: 0, bars: "front",
    colour: (DATA.knobs.find((knob) => knob.values.length > 1) ?? DATA.knobs[0]).key, last: DATA.full,
    held: DATA.knobs.map((knob) => knob.at[DATA.base]), knobAxis: (axisOf("total_ms") ?? axisOf("bytes"))?.key,
    scoreOrder: "block", stageKind: axisOf("total_ms") ? "ms" : "flops", stageRows: "front", seen: new Set(DATA.names.keys()),
  };
  const workloads = DATA.workloads.map((one) => [one.key, one.key]);
  const ats = [];

  function set(key, value, draw) {
    state[key] = value;
    draw();
  }
  function workload(place) { // one choice, shown wherever it matters
    if (workloads.length > 1) ats.push(choice(place, "Workload", workloads, state.at, (value) => {
      for (const other of ats) other.value = value;
      state.at = value;
      table.columns();
      table.filter();
    }));
  }
  const trade = () => { if (byId("scatter")) { scatterPlot(state, state.seen); frontTable(state); } };
  const lines = () => { if (byId("knob-plots")) knobPlots(state); };
  const stages = () => { if (byId("stages")) stagePlot(state, state.seen); };
  const scores = () => { if (byId("scores")) scorePlot(state); };
  const draw = () => { hideTip(); trade(); lines(); stages(); scores(); };

  const controls = byId("scatter-controls");
  if (controls) {
    const axes = DATA.axes.filter((axis) => axis.key in DATA.fronts[state.at]);
    workload(controls);
    if (DATA.tasks.length > 1) choice(controls, "Questions", DATA.tasks.map((name, n) => [n, name]), 0, (value) => { state.task = Number(value); table.filter(); });
    choice(controls, "Cost", axes.map((axis) => [axis.key, labelOf(axis)]), state.axis, (value) => { state.axis = value; table.filter(); });
    choice(controls, "Colour and shape", DATA.knobs.map((knob) => [knob.key, knob.label]), state.colour, (value) => set("colour", value, trade));
    choice(controls, "Error bars", [["front", "of the front"], ["all", "of all"], ["none", "none"]], state.bars, (value) => set("bars", value, trade));
  }
  const held = byId("knob-controls");
  if (held) {
    workload(held);
    const latencies = DATA.axes.filter((axis) => /_ms$|bytes$/.test(axis.key));
    choice(held, "Cost", latencies.map((axis) => [axis.key, labelOf(axis)]), state.knobAxis, (value) => set("knobAxis", value, lines));
    DATA.knobs.forEach((knob, i) => {
      if (knob.values.length > 1) choice(held, `${knob.key} held at`, knob.values.map((value, n) => [n, value]), state.held[i], (value) => { state.held[i] = Number(value); lines(); });
    });
  }
  const staged = byId("stage-controls");
  if (staged) {
    workload(staged);
    const kinds = [["ms", "milliseconds, measured"], ["flops", "FLOPs, counted"]].filter(([kind]) => axisOf(`prefill_${kind}`));
    if (kinds.length > 1) choice(staged, "Of", kinds, state.stageKind, (value) => set("stageKind", value, stages));
    choice(staged, "Settings", [["front", "on the front, and full"], ["all", "all that are not filtered out"]], state.stageRows, (value) => set("stageRows", value, stages));
  }
  const ordered = byId("score-controls");
  if (ordered) choice(ordered, "Order", [["block", "by block"], ["score", "by score"]], "block", (value) => set("scoreOrder", value, scores));

  const table = variantsTable(state, () => { trade(); lines(); stages(); });
  table.columns();
  table.filter();
  scores();
  let width = document.documentElement.clientWidth;
  addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    draw();
  });
}
