// The table of all settings: sorted by any column, filtered by knobs, words and limits, columns shown in groups.
function variantsTable(state, changed) {
  const table = byId("variants"), body = table.tBodies[0], rows = [...body.rows];
  const status = byId("filter-status"), filters = byId("filters");
  const wanted = { words: "", front: false, least: "", most: "", knobs: {} };

  const first = axisOf("total_ms") ?? axisOf("bytes");
  const search = element("input", { type: "search" });
  filters.append(element("label", {}, "Name or command", search));
  search.addEventListener("input", () => { wanted.words = search.value.toLowerCase(); filter(); });
  for (const knob of DATA.knobs.filter((one) => one.values.length > 1)) {
    choice(filters, knob.key, [["", "any"], ...knob.values.map((value, n) => [n, value])], "", (value) => { wanted.knobs[knob.key] = value; filter(); });
  }
  if (DATA.accuracy[0].some(Boolean)) limit("Accuracy at least, %", "least");
  if (first) limit(`${first.label} at most, ${first.unit}`, "most");
  if (DATA.accuracy[0].some(Boolean)) check(filters, "On the front only", false, (on) => { wanted.front = on; filter(); });

  function limit(label, key) {
    const input = element("input", { type: "number", step: "any" });
    input.addEventListener("input", () => { wanted[key] = input.value; filter(); });
    filters.append(element("label", {}, sentence(label), input));
  }

  function fits(n) {
    const share = DATA.accuracy[0][n], cost = first && DATA.values[state.at][first.key][n];
    return (!wanted.words || rows[n].textContent.toLowerCase().includes(wanted.words))
      && DATA.knobs.every((knob) => !wanted.knobs[knob.key] || knob.at[n] === Number(wanted.knobs[knob.key]))
      && (wanted.least === "" || (share && share[0] * 100 >= Number(wanted.least) - 1e-9))
      && (wanted.most === "" || (cost != null && cost / first.divide <= Number(wanted.most) + 1e-9))
      && (!wanted.front || DATA.fronts[state.at][state.axis][state.task].includes(n));
  }

  function filter() {
    state.seen = new Set(rows.map((_, n) => n).filter(fits));
    rows.forEach((row, n) => { row.hidden = !state.seen.has(n); });
    status.textContent = `${state.seen.size} of ${rows.length} settings`;
    changed();
  }

  /** What a column is sorted by: numbers as they were measured, knobs by their order. */
  function keyOf(sort, at, n) {
    const knob = DATA.knobs.find((one) => one.key === sort);
    if (knob) return knob.at[n];
    if (sort === "name") return DATA.names[n];
    if (sort === "drop") return DATA.drop[n];
    if (sort.startsWith("accuracy ")) return DATA.accuracy[Number(sort.slice(9))][n]?.[0];
    return DATA.values[at ?? state.at][sort][n];
  }

  const heads = [...table.tHead.rows[0].cells];
  for (const head of heads.filter((one) => one.dataset.sort)) {
    const button = element("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keys = rows.map((_, n) => keyOf(head.dataset.sort, head.dataset.at, n));
      const order = rows.map((_, n) => n).sort((a, b) => {
        if (keys[a] == null || keys[b] == null) return (keys[a] == null) - (keys[b] == null) || a - b;
        const less = typeof keys[a] === "string" ? keys[a].localeCompare(keys[b], "en", { numeric: true }) : keys[a] - keys[b];
        return (down ? -less : less) || a - b;
      });
      body.append(...order.map((n) => rows[n]));
    });
  }

  for (const row of rows) {
    const code = row.querySelector("td code");
    const button = element("button", { type: "button", "aria-label": `Copy the command for ${DATA.names[row.dataset.n]}` }, "Copy");
    button.addEventListener("click", () => copy(code, button));
    code.before(button);
  }

  async function copy(code, button) {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // not allowed here: select it, so that the keys copy it
      getSelection().selectAllChildren(code);
      said = "Selected";
    }
    button.textContent = said;
    status.textContent = `${said} the command for ${DATA.names[button.closest("tr").dataset.n]}`;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  const groups = byId("column-groups"), open = new Set(DATA.groups.filter((one) => one[2]).map(([key]) => key));
  for (const [key, label] of DATA.groups.filter(([key]) => heads.some((head) => head.dataset.group === key))) {
    check(groups, label, open.has(key), (on) => { if (on) open.add(key); else open.delete(key); columns(); });
  }
  groups.hidden = false;

  function columns() {
    const shut = heads.map(({ dataset }) => (dataset.group && !open.has(dataset.group)) || (dataset.at && dataset.at !== state.at));
    for (const row of table.rows) shut.forEach((hidden, i) => { row.cells[i].hidden = hidden; });
  }

  state.show = (n) => {
    const row = rows[n];
    if (row.hidden) return;
    for (const other of rows) other.classList.toggle("here", other === row);
    row.cells[0].setAttribute("tabindex", -1);
    row.cells[0].focus({ preventScroll: true });
    row.scrollIntoView({ block: "center" });
  };
  return { filter, columns };
}
