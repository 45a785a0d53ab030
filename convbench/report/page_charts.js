// Parts of a chart: SVG elements, numbers for people, scales with ticks, markers, a tooltip.

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  return filled(element, attributes, children);
}

function html(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

// -- numbers for people: as convbench.report.text writes them ---------------------------------------

function plain(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-4)) return value.toExponential(digits - 1);
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

const TIME_UNITS = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]];

function timeUnit(value) {
  return TIME_UNITS.find(([scale]) => value >= 0.9995 * scale) ?? TIME_UNITS.at(-1);
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  const [scale, unit] = timeUnit(value);
  return `${plain(value / scale)} ${unit}`;
}

// -- scales -----------------------------------------------------------------------------------------

// From values to pixels between two ends. A log scale shows what is not positive at its lower end.
function scale(values, isLog, from, to, pad = 0.04) {
  const usable = isLog ? values.filter((value) => value > 0) : values;
  const forth = isLog ? Math.log10 : (value) => value;
  let [low, high] = usable.length ? [forth(Math.min(...usable)), forth(Math.max(...usable))] : [0, 1];
  if (!isLog) low = Math.min(low, 0); // lengths are compared from zero
  if (isLog && usable.length < values.length) low -= 0.3; // room for zeros
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const margin = pad * (high - low);
  const [first, last] = [isLog || low < 0 ? low - margin : low, high + margin];
  const place = (value) => from + ((forth(value) - first) / (last - first)) * (to - from);
  return {
    at: (value) => (isLog && !(value > 0) ? from + (to > from ? 1 : -1) : place(value)),
    ticks: isLog ? logTicks(first, last) : linearTicks(first, last),
  };
}

function logTicks(first, last) {
  const span = last - first;
  const factors = span > 2.5 ? [1] : span > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const step = Math.max(1, Math.ceil(span / 8));
  const ticks = [];
  for (let decade = Math.floor(first); decade <= last; decade += 1) {
    if (decade % step) continue;
    ticks.push(...factors.map((factor) => factor * 10 ** decade));
  }
  return ticks.filter((tick) => Math.log10(tick) >= first && Math.log10(tick) <= last);
}

function linearTicks(first, last) {
  const rough = (last - first) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const count = Math.floor(last / step) - Math.ceil(first / step) + 1;
  return Array.from({ length: count }, (_, index) => (Math.ceil(first / step) + index) * step);
}

// Leave out ticks whose texts would run into each other.
function spaced(ticks, at, widthOf) {
  let end = -Infinity;
  return ticks.filter((tick) => {
    const half = widthOf(tick) / 2;
    if (at(tick) - half < end + 6) return false;
    end = at(tick) + half;
    return true;
  });
}

// -- the frame of a chart ---------------------------------------------------------------------------

const CHARACTER = 6.6; // pixels, at the charts' 12
const ROOM = { left: 66, right: 14, top: 10, bottom: 44 };

// Axes, grid and titles. `across` and `up`: { values, isLog, title, format, ticks (if not every number is one) }.
function frame(width, height, across, up, label) {
  const x = scale(across.values, across.isLog, ROOM.left, width - ROOM.right, 0.05);
  const y = scale(up.values, up.isLog, height - ROOM.bottom, ROOM.top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label, tabindex: 0 });
  const [floor, left] = [height - ROOM.bottom, ROOM.left];
  const widthOf = (tick) => CHARACTER * across.format(tick).length;
  for (const tick of spaced(across.ticks ?? x.ticks, x.at, widthOf)) {
    root.append(
      svg("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: ROOM.top, y2: floor }),
      svg("text", { x: x.at(tick), y: floor + 16, "text-anchor": "middle" }, across.format(tick)),
    );
  }
  for (const tick of y.ticks) {
    root.append(
      svg("line", { class: "grid", x1: left, x2: width - ROOM.right, y1: y.at(tick), y2: y.at(tick) }),
      svg("text", { x: left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, up.format(tick)),
    );
  }
  root.append(
    svg("path", { class: "axis", d: `M${left} ${ROOM.top}V${floor}H${width - ROOM.right}` }),
    svg("text", { class: "title", x: (left + width - ROOM.right) / 2, y: height - 8, "text-anchor": "middle" }, across.title),
    svg("text", { class: "title", transform: `translate(13 ${(ROOM.top + floor) / 2}) rotate(-90)`, "text-anchor": "middle" }, up.title),
  );
  const inside = (pixel) => Math.min(Math.max(pixel, ROOM.top), floor);
  return { root, x: x.at, y: y.at, inside };
}

// -- markers: a shape and a colour for each backend, those of the fixed plots -----------------------

const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
  "M-3.6-3.6H3.6V3.6H-3.6Z",
  "M0-4.6 4.6 3.6H-4.6Z",
  "M0-5 5 0 0 5-5 0Z",
  "M0 4.6 4.6-3.6H-4.6Z",
  "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3Z",
  "M0-1.9 2.4-4.3 4.3-2.4 1.9 0 4.3 2.4 2.4 4.3 0 1.9-2.4 4.3-4.3 2.4-1.9 0-4.3-2.4-2.4-4.3Z",
  "M-4.6 0 3.6-4.6V4.6Z",
  "M4.6 0-3.6-4.6V4.6Z",
];

const colourOf = ([colour]) => (colour < 0 ? `g${-1 - colour}` : `c${colour}`);

function marker(look, attributes = {}) {
  const [, shape, isFilled] = look;
  return svg("path", { class: `mark ${colourOf(look)}${isFilled ? "" : " hollow"}`, d: SHAPES[shape], ...attributes });
}

function swatch(look) {
  const line = svg("path", { class: `line ${colourOf(look)}${look[3] ? " dashed" : ""}`, d: "M0 7H26" });
  return svg("svg", { width: 26, height: 14, "aria-hidden": "true" }, line, marker(look, { transform: "translate(13 7)" }));
}

// -- what stands behind a point ---------------------------------------------------------------------

// Show the texts of the point next to the pointer, or of that which has the focus: arrow keys go from point to point.
// `points`: { x, y, element, lines (a function), series }.
function explain(root, points, tip, highlight) {
  const nearest = (x, y) => {
    const distances = points.map((point) => Math.hypot(point.x - x, point.y - y));
    const least = Math.min(...distances);
    return least < 30 ? points[distances.indexOf(least)] : null;
  };
  let current = null;
  const show = (point) => {
    current?.element.classList.remove("current");
    current = point;
    highlight(point?.series ?? null);
    tip.hidden = !point;
    if (!point) return;
    point.element.classList.add("current");
    tip.replaceChildren(...point.lines().map((line, index) => html(index ? "div" : "strong", {}, line)));
    placed(tip, root, point);
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const found = nearest(event.clientX - box.left, event.clientY - box.top);
    if (found !== current) show(found);
  });
  root.addEventListener("pointerleave", () => show(null));
  root.addEventListener("blur", () => show(null));
  root.addEventListener("focus", () => !current && show(points[0] ?? null));
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return show(null);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !points.length) return undefined;
    event.preventDefault();
    return show(neighbour(points, current ?? points[0], step, event.key.endsWith("t")));
  });
}

// Left and right: the points of the same backend. Up and down: the points above and below each other.
function neighbour(points, current, step, isAlong) {
  const others = isAlong
    ? points.filter((point) => point.series === current.series).sort((a, b) => a.x - b.x)
    : points.filter((point) => Math.abs(point.x - current.x) < 1).sort((a, b) => a.y - b.y);
  return others[(others.indexOf(current) + step + others.length) % others.length];
}

// Beside the point, within the chart's box.
function placed(tip, root, point) {
  const box = tip.offsetParent.getBoundingClientRect();
  const own = root.getBoundingClientRect();
  const [x, y] = [own.left - box.left + point.x, own.top - box.top + point.y];
  const left = x + 14 + tip.offsetWidth > box.width ? x - 14 - tip.offsetWidth : x + 14;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, y - tip.offsetHeight / 2)}px`;
}
