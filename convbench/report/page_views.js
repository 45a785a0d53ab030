// The three pictures: figures against a number, who is fastest where, error against time.

// -- the run's data, by case and backend ------------------------------------------------------------

class Run {
  constructor(data) {
    Object.assign(this, data);
    this.rows = new Map(data.case.map((number, row) => [`${number} ${data.backend[row]}`, row]));
  }

  row(number, backend) {
    return this.rows.get(`${number} ${backend}`);
  }

  figure(column, row) {
    return (row !== undefined && this.columns[column]?.[row]) ?? null;
  }

  has(column) {
    return this.columns[column]?.some((figure) => figure !== null) ?? false;
  }

  // How many times faster a row is than the backend `base` on its case.
  speedup(row, base) {
    if (base === this.baseline) return ["speedup", "speedup_low", "speedup_high"].map((column) => this.figure(column, row));
    const other = this.row(this.case[row], this.backends.indexOf(base));
    if (other === undefined || other === row) return [this.figure("time_s", other ?? -1) && 1, null, null];
    return ratio(this.medians[other], this.medians[row], this.quantiles);
  }

  // Axes to draw against: the numbers that vary, then the amount of work, then the cases as they come.
  get choices() {
    const swept = this.axes.filter(({ panels }) => panels.length).map((axis) => ({ ...axis, isSweep: true, format: plain }));
    const numbers = this.cases.map((_, number) => number);
    const work = numbers.map((number) => this.figure("flops_nominal", this.case.indexOf(number)));
    const whole = (values) => [{ title: "", points: numbers.map((number) => [values[number], number]).filter(([value]) => value) }];
    const all = { varies: "case", title: "case, in the suite's order", panels: whole(numbers.map((n) => n + 1)), format: (n) => `#${n}` };
    const flops = { varies: "work", title: "floating-point operations of a direct sum", panels: whole(work), format: (n) => plain(n, 2) };
    return new Set(work).size > 2 ? [...swept, flops, all] : [...swept, all];
  }
}

// The geometric mean of a/b over the passes that both have, with Student's interval of the logarithms' mean (none from
// few passes): as convbench.bench.ratios.paired_ratio has it.
function ratio(a, b, quantiles) {
  const logs = a.map((value, pass) => Math.log(value / b[pass])).filter((log, pass) => a[pass] !== null && b[pass] !== null);
  const count = logs.length;
  if (!count) return [null, null, null];
  const mean = logs.reduce((sum, log) => sum + log, 0) / count;
  if (!quantiles[count]) return [Math.exp(mean), null, null];
  const variance = logs.reduce((sum, log) => sum + (log - mean) ** 2, 0) / (count - 1);
  const reach = quantiles[count] * Math.sqrt(variance / count);
  return [mean, mean - reach, mean + reach].map(Math.exp);
}

// What can stand on the upright axis; `of` returns the figure and the ends of its interval.
function quantities(run, base) {
  const percent = `${plain(100 * run.confidence)} %`;
  const triple = (...columns) => (row) => columns.map((column) => run.figure(column, row));
  const rate = (row) => {
    const [value, low, high] = triple("effective_gflop_per_s", "low_s", "high_s")(row);
    const scaled = (end) => end && (value * run.figure("time_s", row)) / end;
    return [value, scaled(high), scaled(low)];
  };
  const all = {
    time: { title: "time of one call", needs: "time_s", format: seconds, of: triple("time_s", "low_s", "high_s"), interval: "95 %" },
    rate: { title: "GFLOP/s, of a direct sum's work", needs: "effective_gflop_per_s", format: plain, of: rate, interval: "95 %" },
    speedup: { title: `speed-up over ${base}`, needs: "time_s", format: (v) => `${plain(v)}×`, of: (row) => run.speedup(row, base), interval: percent },
    error: { title: "largest error / eps", needs: "error_max_eps", format: plain, of: (row) => [run.figure("error_max_eps", row), null, null] },
  };
  return Object.fromEntries(Object.entries(all).filter(([, { needs }]) => run.has(needs)));
}

function description(run, row, base) {
  const [time, low, high] = ["time_s", "low_s", "high_s"].map((column) => run.figure(column, row));
  const [faster, least, most] = run.speedup(row, base);
  const between = (from, to, format) => (from === null || to === null ? "" : ` (${format(from)} – ${format(to)})`);
  const led = ["", "the fastest of its case", "a tie for the fastest of its case"][run.leads[row]];
  const errors = `error ${plain(run.figure("error_max_eps", row))} eps, bound ${plain(run.figure("error_bound_eps", row))} eps`;
  return [
    run.backends[run.backend[row]],
    run.labels[run.case[row]],
    time && `${seconds(time)}${between(low, high, seconds)}`,
    time && faster && run.backends[run.backend[row]] !== base && `${plain(faster)}× over ${base}${between(least, most, plain)}`,
    run.figure("error_max_eps", row) !== null && errors,
    `status: ${run.status[row]}${led && time ? `; ${led}` : ""}`,
  ].filter(Boolean);
}

// -- controls ---------------------------------------------------------------------------------------

function select(label, key, options, state, otherwise) {
  const box = html("select", { name: key }, ...options.map(([value, text]) => html("option", { value }, text)));
  const wanted = state.get(key, otherwise);
  box.value = options.some(([value]) => value === wanted) ? wanted : otherwise;
  box.addEventListener("change", () => state.set({ [key]: box.value === otherwise ? "" : box.value }));
  return html("label", {}, `${label} `, box);
}

function check(label, key, state, otherwise) {
  const box = html("input", { type: "checkbox", name: key });
  box.checked = state.get(key, otherwise) === "log";
  box.addEventListener("change", () => {
    const value = box.checked ? "log" : "linear";
    state.set({ [key]: value === otherwise ? "" : value });
  });
  return html("label", {}, box, ` ${label}`);
}

// A new form takes the place of the old one: the field in use keeps the focus.
function replaceControls(place, ...controls) {
  const name = place.contains(document.activeElement) ? document.activeElement.name : "";
  place.replaceChildren(...controls);
  if (name) place.querySelector(`[name="${name}"]`)?.focus();
}

function legend(place, run, state, highlight) {
  const buttons = run.backends.map((name, backend) => {
    const timed = run.cases.filter((_, number) => run.figure("time_s", run.row(number, backend)) !== null).length;
    const title = `${name}: a time in ${timed} of ${run.cases.length} cases`;
    const button = html("button", { type: "button", title, "data-backend": name }, swatch(run.looks[backend]), name);
    button.addEventListener("click", () => {
      const chosen = state.chosen("backend", run.backends);
      if (!chosen.delete(name)) chosen.add(name);
      state.choose("backend", run.backends, chosen);
    });
    button.addEventListener("pointerenter", () => highlight(backend));
    button.addEventListener("pointerleave", () => highlight(null));
    return button;
  });
  const groups = { all: run.backends, none: [], "fastest of a case": run.backends.filter((_, b) => run.leads.some((lead, row) => lead && run.backend[row] === b)) };
  const quick = Object.entries(groups).map(([text, names]) => {
    const button = html("button", { type: "button", class: "plain" }, text);
    button.addEventListener("click", () => state.choose("backend", run.backends, new Set(names)));
    return button;
  });
  place.replaceChildren(html("div", { class: "quick" }, "Show: ", ...quick), ...buttons);
  state.on(["backend"], () => {
    const chosen = state.chosen("backend", run.backends);
    buttons.forEach((button) => button.setAttribute("aria-pressed", chosen.has(button.dataset.backend)));
  });
}

// Redraw when the width has changed, not only the height that drawing itself sets.
function onWidth(element, draw) {
  let width = element.clientWidth;
  new ResizeObserver(() => {
    if (element.clientWidth === width) return;
    width = element.clientWidth;
    draw();
  }).observe(element);
}

// -- figures against a number -----------------------------------------------------------------------

function linesView(section, run, state) {
  const [controls, place, names, tip] = [".controls", ".drawing", ".legend", ".tip"].map((part) => section.querySelector(part));
  const highlight = (series) => emphasise(section, series);
  legend(names, run, state, highlight);
  const draw = () => {
    const base = state.get("base", run.baseline);
    const measures = quantities(run, base);
    const measure = measures[state.get("y", Object.keys(measures)[0])] ?? Object.values(measures)[0];
    if (!measure) return section.remove();
    const axis = run.choices.find(({ varies }) => varies === state.get("x")) ?? run.choices[0];
    const isLog = { x: state.get("logx", axis.varies === "case" ? "linear" : "log") === "log", y: state.get("logy", "log") === "log" };
    replaceControls(controls, ...lineControls(run, state, measures, axis));
    const panels = chosenPanels(axis, state);
    const shown = state.chosen("backend", run.backends);
    const made = panels.map((panel) => ({ panel, series: seriesOf(run, panel, measure, shown, axis.isSweep) }));
    const columns = Math.min(panels.length, Math.max(1, Math.floor(place.clientWidth / 400)));
    const width = Math.floor((place.clientWidth - 16 * (columns - 1)) / columns) || 640;
    const every = withinReach(made.flatMap(({ series }) => series.flatMap(({ points }) => points)));
    place.style.setProperty("--columns", columns);
    place.replaceChildren(
      ...made.map(({ panel, series }) => {
        const across = { ...axis, values: panels.flatMap(({ points }) => points.map(([value]) => value)), isLog: isLog.x };
        if (axis.isSweep || axis.varies === "case") across.ticks = [...new Set(across.values)].sort((a, b) => a - b);
        const up = { ...measure, values: every, isLog: isLog.y };
        const label = `${measure.title} against ${axis.title}${panel.title && `, ${panel.title}`}`;
        const chart = frame(width, Math.min(420, Math.max(280, width * 0.62)), across, up, label);
        const points = series.flatMap((entry) => drawSeries(chart, run, entry, measure, base));
        explain(chart.root, points, tip, highlight);
        return html("figure", {}, panel.title ? html("figcaption", {}, panel.title) : null, chart.root);
      }),
    );
    section.querySelector(".note").textContent = noteOf(run, measure, axis);
  };
  state.on(["x", "y", "base", "panel", "logx", "logy", "backend"], draw);
  onWidth(place, draw);
}

function lineControls(run, state, measures, axis) {
  const titles = { time: "time", rate: "GFLOP/s", speedup: "speed-up", error: "error" };
  const [y] = Object.keys(measures);
  const isSpeedup = state.get("y", y) === "speedup";
  const panels = axis.panels.map(({ title }, index) => [String(index), title]);
  return [
    select("Show", "y", Object.keys(measures).map((key) => [key, titles[key]]), state, y),
    isSpeedup ? select("over", "base", run.backends.map((name) => [name, name]), state, run.baseline) : null,
    select("against", "x", run.choices.map(({ varies, title }) => [varies, title]), state, run.choices[0].varies),
    panels.length > 1 ? select("for", "panel", [["all", "all"], ...panels], state, firstPanel(axis)) : null,
    check("log upright", "logy", state, "log"),
    check("log across", "logx", state, axis.varies === "case" ? "linear" : "log"),
  ].filter(Boolean);
}

const MOST_PANELS = 4;

const firstPanel = (axis) => (axis.panels.length > MOST_PANELS ? "0" : "all");

function chosenPanels(axis, state) {
  const panel = axis.panels[Number(state.get("panel", firstPanel(axis)))];
  return panel ? [panel] : axis.panels;
}

function seriesOf(run, panel, measure, shown, isLine) {
  return run.backends.map((name, backend) => {
    const all = panel.points.map(([value, number]) => {
      const row = run.row(number, backend);
      const [figure, low, high] = row === undefined ? [null] : measure.of(row);
      return { row, value, figure, low, high };
    });
    return { name, backend, isLine, all, points: shown.has(name) ? all.filter(({ figure }) => figure !== null) : [] };
  }).filter(({ points }) => points.length);
}

// The figures and the ends of their intervals; not those that go far beyond all figures, as intervals from few passes do.
function withinReach(points) {
  const figures = points.map(({ figure }) => figure);
  const [least, most] = [Math.min(...figures) / 3, Math.max(...figures) * 3];
  const ends = points.flatMap(({ low, high }) => [low, high]).filter((end) => end !== null && end !== undefined);
  return [...figures, ...ends.filter((end) => end >= least && end <= most)];
}

// Draw one backend: its line, broken where a pair has no figure, intervals, rings around ties, markers on top.
function drawSeries(chart, run, { name, backend, isLine, all, points }, measure, base) {
  const look = run.looks[backend];
  const at = ({ value, figure }) => [chart.x(value), chart.y(figure)];
  const group = svg("g", { class: "series", "data-series": backend, "data-backend": name });
  if (isLine) {
    let pen = "M";
    const path = all.map((point) => {
      const step = point.figure === null ? "" : `${pen}${at(point).map((pixel) => pixel.toFixed(1)).join(" ")}`;
      pen = point.figure === null ? "M" : "L";
      return step;
    });
    group.append(svg("path", { class: `line ${colourOf(look)}${look[3] ? " dashed" : ""}`, d: path.join("") }));
  }
  const drawn = points.map((point) => {
    const [x, y] = at(point);
    if (point.low !== null && point.high !== null) {
      group.append(svg("line", { class: `line bar ${colourOf(look)}`, x1: x, x2: x, y1: chart.inside(chart.y(point.low)), y2: chart.inside(chart.y(point.high)) }));
    }
    if (run.leads[point.row] === 2 && measure.needs === "time_s") group.append(svg("circle", { class: "ring", cx: x, cy: y, r: 8 }));
    const element = marker(look, { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, "data-row": point.row });
    group.append(element);
    return { x, y, element, series: backend, lines: () => description(run, point.row, base) };
  });
  chart.root.append(group);
  return drawn;
}

function emphasise(section, series) {
  section.classList.toggle("emphasis", series !== null);
  section.querySelectorAll(".series").forEach((group) => group.classList.toggle("chosen", group.dataset.series === String(series)));
}

function noteOf(run, measure, axis) {
  const bars = measure.interval ? `Bars: ${measure.interval} interval. ` : "";
  const ties = run.leads.includes(2) && measure.needs === "time_s" ? "Circled: not separated from the fastest of its case. " : "";
  const cases = axis.isSweep ? "" : run.labels.length > 40 ? "" : `Cases: ${run.labels.map((label, n) => (label.startsWith("#") ? label : `#${n + 1} ${label}`)).join("; ")}. `;
  return `${bars}${ties}${cases}Solid lines: convbench's own backends; dashed: others. What has no figure (refused, skipped, wrong) is not drawn.`;
}

// -- who is fastest where ---------------------------------------------------------------------------

function mapView(section, run, state) {
  if (!run.has("time_s")) return section.remove();
  const place = section.querySelector(".map");
  state.on(["x"], () => {
    const axis = run.choices.find(({ varies }) => varies === state.get("x")) ?? run.choices[0];
    place.replaceChildren(axis.isSweep ? sweepMap(run, axis) : caseMap(run));
  });
}

function sweepMap(run, axis) {
  const values = [...new Set(axis.panels.flatMap(({ points }) => points.map(([value]) => value)))].sort((a, b) => a - b);
  const rows = axis.panels.map(({ title, points }) => {
    const numbers = new Map(points);
    return html("tr", {}, html("th", { scope: "row" }, title || "all cases"), ...values.map((value) => winnerCell(run, numbers.get(value))));
  });
  const heads = values.map((value) => html("th", { scope: "col" }, plain(value)));
  return mapTable(html("tr", {}, html("th", { scope: "col" }, axis.title), ...heads), rows);
}

function caseMap(run) {
  const rows = run.labels.map((label, number) => html("tr", {}, html("th", { scope: "row" }, label), winnerCell(run, number)));
  return mapTable(html("tr", {}, html("th", { scope: "col" }, "case"), html("th", { scope: "col" }, "fastest")), rows);
}

function mapTable(head, rows) {
  return html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows));
}

const NAMED = 2;

// The fastest backend of a case with its lead over the next one; or all that nothing separates from it, hatched.
function winnerCell(run, number) {
  if (number === undefined) return html("td", { class: "blank" });
  const times = run.backends.map((_, backend) => run.row(number, backend)).filter((row) => run.figure("time_s", row) !== null);
  times.sort((a, b) => a - b); // as in the table: the fastest first
  const leaders = times.filter((row) => run.leads[row]);
  if (!times.length) return html("td", { class: "blank", title: "no backend has a time" }, "no time");
  if (!leaders.length) return html("td", { class: "blank", title: "too few passes to tell who is fastest" }, "undecided");
  const names = leaders.map((row) => run.backends[run.backend[row]]);
  const next = times.find((row) => !run.leads[row]);
  const [first] = leaders;
  const lead = next === undefined ? "" : `, next ${plain(run.figure("ratio_to_best", next))}×`;
  const isTie = names.length > 1;
  const text = names.slice(0, NAMED).join(", ") + (names.length > NAMED ? ` +${names.length - NAMED}` : "");
  const title = `${run.labels[number]}: ${isTie ? `tie of ${names.join(", ")}` : names[0]}; ${seconds(run.figure("time_s", first))}${
    next === undefined ? "" : `; next is ${run.backends[run.backend[next]]}`}`;
  return html(
    "td",
    { class: `cell ${colourOf(run.looks[run.backend[first]])}${isTie ? " tie" : ""}`, title },
    html("strong", {}, isTie ? `tie: ${text}` : text),
    html("small", {}, `${seconds(run.figure("time_s", first))}${lead}`),
  );
}

// -- error against time -----------------------------------------------------------------------------

function paretoView(section, run, state) {
  if (!run.has("time_s") || !run.has("error_max_eps")) return section.remove();
  const [controls, place, tip] = [".controls", ".drawing", ".tip"].map((part) => section.querySelector(part));
  const draw = () => {
    const number = Math.min(Number(state.get("case", "1")) || 1, run.cases.length) - 1;
    const cases = run.labels.map((label, index) => [String(index + 1), label]);
    replaceControls(controls, select("Case", "case", cases, state, "1"));
    const points = paretoPoints(run, number, state.chosen("backend", run.backends));
    place.replaceChildren(points.length ? paretoChart(run, points, place.clientWidth || 640, tip, section, state) : html("p", {}, "No backend that is shown has a time here."));
  };
  state.on(["case", "backend", "base"], draw);
  onWidth(place, draw);
}

function paretoPoints(run, number, shown) {
  return run.backends.flatMap((name, backend) => {
    const row = run.row(number, backend);
    const [time, error] = ["time_s", "error_max_eps"].map((column) => run.figure(column, row));
    return shown.has(name) && time !== null && error !== null ? [{ name, backend, row, time, error }] : [];
  });
}

// The points that no other one dominates, the fastest first: as convbench.report.pareto.front.
function paretoFront(points) {
  const front = [];
  for (const point of [...points].sort((a, b) => a.time - b.time || a.error - b.error)) {
    const last = front.at(-1);
    if (!last || point.error < last.error || (point.error === last.error && point.time === last.time)) front.push(point);
  }
  return front;
}

function paretoChart(run, points, width, tip, section, state) {
  const across = { title: "time of one call", format: seconds, isLog: true, values: points.map(({ time }) => time) };
  const up = { title: "largest error / eps", format: plain, isLog: true, values: points.map(({ error }) => error) };
  const chart = frame(Math.min(width, 900), 420, across, up, "error against time of each backend");
  const front = paretoFront(points);
  const ahead = new Set(front);
  const at = ({ time, error }) => [chart.x(time), chart.y(error)];
  chart.root.append(svg("path", { class: "front", d: steps(front.map(at), ROOM.top, Math.min(width, 900) - ROOM.right) }));
  const labels = placeLabels([...front, ...points.filter((point) => !ahead.has(point))].map((point) => ({ point, text: point.name, at: at(point) })), Math.min(width, 900));
  const drawn = points.map((point) => {
    const [x, y] = at(point);
    const isAhead = ahead.has(point);
    const element = marker(run.looks[point.backend], { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})${isAhead ? " scale(1.4)" : ""}` });
    const group = svg("g", { class: "series", "data-series": point.backend, "data-backend": point.name, "data-front": String(isAhead) }, element, labels.get(point));
    chart.root.append(group);
    return { x, y, element, series: point.backend, lines: () => description(run, point.row, state.get("base", run.baseline)) };
  });
  explain(chart.root, drawn, tip, (series) => emphasise(section, series));
  return chart.root;
}

// From above the fastest point to the right of the most exact one, in steps.
function steps(corners, top, right) {
  const [[x, y], ...rest] = corners;
  return `M${x} ${top}V${y}${rest.map(([nextX, nextY]) => `H${nextX}V${nextY}`).join("")}H${right}`;
}

// Write each name beside its point where there is room; those on the front come first.
function placeLabels(wanted, width) {
  const taken = wanted.map(({ at: [x, y] }) => [x - 5, y - 5, x + 5, y + 5]);
  const labels = new Map();
  for (const { point, text, at: [x, y] } of wanted) {
    const long = CHARACTER * text.length;
    const spots = [x + 8, x - 8 - long].flatMap((left) => [y - 7, y + 15, y + 4].map((base) => [left, base]));
    const free = spots.find(([left, base]) => left > ROOM.left && left + long < width && !taken.some((box) => overlap(box, [left, base - 10, left + long, base + 2])));
    if (!free) continue;
    const [left, base] = free;
    taken.push([left, base - 10, left + long, base + 2]);
    labels.set(point, svg("text", { x: left, y: base }, text));
  }
  return labels;
}

const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
