// The table of all results: sorting, filtering, copying. Figures come from the page's data, by row and column.

const isDescending = (order) => order === "descending";

function sortable(table, data, state) {
  const body = table.tBodies[0];
  const rows = [...body.rows]; // as written: what is equal keeps this order
  const heads = [...table.tHead.rows[0].cells].filter((head) => head.dataset.key !== undefined);
  heads.forEach((head) => asButton(head, () => turn(head)));

  function turn(head) {
    const first = head.dataset.order;
    const sorted = head.getAttribute("aria-sort");
    const other = isDescending(first) ? "ascending" : "descending";
    const order = sorted === first ? other : first;
    state.set({ sort: head.dataset.key, order: order === first ? "" : order });
  }

  state.on(["sort", "order"], () => {
    const head = heads.find((entry) => entry.dataset.key === state.get("sort"));
    heads.forEach((entry) => entry.setAttribute("aria-sort", "none"));
    if (!head) return body.append(...rows);
    const order = state.get("order") || head.dataset.order;
    head.setAttribute("aria-sort", order);
    body.append(...sortedBy(rows, valueOf(head, data), isDescending(order)));
  });
}

function asButton(head, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", act);
}

// A numeric column has its figures in the data, any other its text in the cell.
function valueOf(head, data) {
  const { column } = head.dataset;
  const figures = column === "case" ? data.case : data.columns[column];
  if (figures) return (row) => figures[row.dataset.row];
  return (row) => cellAt(row, head.cellIndex).textContent;
}

// The cell in a column; a reason takes the room of several.
function cellAt(row, column) {
  let next = 0;
  return [...row.cells].find((cell) => (next += cell.colSpan) > column);
}

// What has no figure (a refusal) goes last either way.
function sortedBy(rows, value, descending) {
  const missing = (figure) => figure === null || figure === "";
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  const keyed = rows.map((row) => [value(row), row]);
  keyed.sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return descending ? compare(b, a) : compare(a, b);
  });
  return keyed.map(([, row]) => row);
}

// A whole word, * standing for any part of it: k3 is not k31.
function pattern(term) {
  return new RegExp(`^${term.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*")}[:;,.]?$`);
}

function filterable(table, form, count, data, state) {
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, words: wordsOf(row), number: Number(row.dataset.row) }));
  const fields = [...form.querySelectorAll("input[type=search], input[type=text]")];
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const statuses = boxes.filter((box) => box.name === "status").map((box) => box.value);
  const names = { backend: data.backends, status: statuses };
  const keys = ["text", "min.", "max.", "backend", "status"];

  fields.forEach((field) => field.addEventListener("input", () => state.set({ [field.name]: field.value.trim() })));
  boxes.forEach((box) =>
    box.addEventListener("change", () => {
      const chosen = boxes.filter(({ name, checked }) => name === box.name && checked).map(({ value }) => value);
      state.choose(box.name, names[box.name], new Set(chosen));
    }),
  );
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("click", ({ target }) => {
    const { all } = target.dataset;
    if (all) state.choose("backend", data.backends, new Set(all === "yes" ? data.backends : []));
  });
  state.on(keys, () => {
    show();
    const tests = [...inRange(fields, data), hasWords(state.get("text")), among("backend"), among("status")];
    rows.forEach((entry) => (entry.row.hidden = !tests.every((test) => test(entry))));
    count.textContent = `${rows.filter(({ row }) => !row.hidden).length} of ${rows.length} rows`;
  });
  form.hidden = false;

  function show() {
    fields.filter((field) => field !== document.activeElement).forEach((field) => (field.value = state.get(field.name)));
    boxes.forEach((box) => (box.checked = state.chosen(box.name, names[box.name]).has(box.value)));
  }

  function among(key) {
    const chosen = state.chosen(key, names[key]);
    return ({ row }) => chosen.has(row.dataset[key]);
  }
}

function wordsOf(row) {
  const cells = [...row.cells].filter((cell) => !cell.classList.contains("again"));
  return [row.cells[0].title, ...cells.map((cell) => cell.textContent)].join(" ").toLowerCase().split(/\s+/);
}

function hasWords(text) {
  const terms = text.toLowerCase().split(/\s+/).filter(Boolean).map(pattern);
  return ({ words }) => terms.every((term) => words.some((word) => term.test(word)));
}

// Tests for the fields min.… and max.… that hold a quantity. What has no figure is in no range.
function inRange(fields, data) {
  return fields.filter((field) => field.dataset.column).flatMap((field) => {
    const bound = quantity(field.value);
    field.setAttribute("aria-invalid", String(field.value.trim() !== "" && bound === null));
    if (bound === null) return [];
    const figure = figuresOf(field.dataset.column, data);
    const within = field.name.startsWith("min.") ? (value) => value >= bound : (value) => value <= bound;
    return [({ number }) => figure(number) !== null && within(figure(number))];
  });
}

// A column of the table by row, or a number that varies among the cases.
function figuresOf(column, data) {
  if (data.columns[column]) return (row) => data.columns[column][row];
  const { values } = data.axes.find(({ varies }) => varies === column);
  return (row) => values[data.case[row]];
}

const UNITS = { ns: 1e-9, µs: 1e-6, us: 1e-6, ms: 1e-3, s: 1, "×": 1, x: 1, "%": 0.01, b: 1, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30 };

// "1.5 ms" → 0.0015; null for what is no quantity.
function quantity(text) {
  const found = /^([0-9.]+(?:e[+-]?[0-9]+)?)\s*(\S*)$/.exec(text.trim().toLowerCase().replace("μ", "µ"));
  if (!found || Number.isNaN(Number(found[1]))) return null;
  const unit = found[2] ? UNITS[found[2]] : 1;
  return unit === undefined ? null : Number(found[1]) * unit;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed here: the older way
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function copyable(cell) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await copy(cell.querySelector("code").textContent);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
  cell.prepend(button);
}

// Say above a table that it is wider than the window; bars that would show it may be hidden until it is scrolled.
function hinted(frame) {
  const hint = document.createElement("p");
  hint.className = "hint dim";
  hint.textContent = "Wider than the window: scroll sideways for more →";
  frame.before(hint);
  new ResizeObserver(() => (hint.hidden = frame.scrollWidth <= frame.clientWidth + 1)).observe(frame);
}
