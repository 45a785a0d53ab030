// Sorting, filtering and copying. Without this script the tables stand as they are.
"use strict";

// Cells hold the raw number behind their text in data-v; a numeric cell without one (a refusal) goes last either way.
const number = (cell) => (cell.dataset.v === undefined ? NaN : Number(cell.dataset.v));

function compare(a, b, column, numeric, sign) {
  const [x, y] = [a.cells[column], b.cells[column]];
  if (!numeric) return sign * x.textContent.localeCompare(y.textContent, "en", { numeric: true });
  const [p, q] = [number(x), number(y)];
  if (Number.isNaN(p) || Number.isNaN(q)) return Number.isNaN(p) - Number.isNaN(q);
  return sign * (p - q);
}

function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows]; // as written: what is equal keeps this order
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.dataset.sort === undefined) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const first = head.dataset.sort.includes("descending") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const numeric = head.dataset.sort.includes("number");
      const sign = order === "ascending" ? 1 : -1;
      body.append(...[...rows].sort((a, b) => compare(a, b, column, numeric, sign)));
    });
  });
}

// A whole word, * standing for any part of it: k3 is not k31.
function pattern(term) {
  return new RegExp(`^${term.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*")}[:;,.]?$`);
}

function filterable(table, form, count) {
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row,
    backend: row.dataset.backend,
    status: row.dataset.status,
    words: [row.cells[0].title, ...[...row.cells].slice(0, -1).map((cell) => cell.textContent)]
      .join(" ")
      .toLowerCase()
      .split(/\s+/),
  }));
  const chosen = (name) => new Set([...form.querySelectorAll(`[name=${name}]:checked`)].map((box) => box.value));
  const apply = () => {
    const terms = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean).map(pattern);
    const [backends, statuses] = [chosen("backend"), chosen("status")];
    let shown = 0;
    for (const { row, backend, status, words } of rows) {
      const found = terms.every((term) => words.some((word) => term.test(word)));
      row.hidden = !(backends.has(backend) && statuses.has(status) && found);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("click", (event) => {
    const { all } = event.target.dataset;
    if (all === undefined) return;
    event.target.closest("fieldset").querySelectorAll("input").forEach((box) => (box.checked = all === "yes"));
    apply();
  });
  form.hidden = false;
  apply(); // a browser may have kept the fields of an earlier visit
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

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("#results td.again").forEach(copyable);
filterable(
  document.getElementById("results"),
  document.getElementById("filters"),
  document.getElementById("results-count"),
);
