// What this page does once it is read. Without scripts the tables and the fixed plots stand as they are.
const data = JSON.parse(document.getElementById("run-data").textContent);
const state = new State();
const find = (id) => document.getElementById(id);

sortable(find("results"), data, state);
document.querySelectorAll("#results td.again").forEach(copyable);
document.querySelectorAll(".scroll:has(table)").forEach(hinted);
filterable(find("results"), find("filters"), find("results-count"), data, state);

const run = new Run(data);
document.querySelectorAll(".interactive").forEach((part) => (part.hidden = false));
linesView(find("lines"), run, state);
mapView(find("map"), run, state);
paretoView(find("pareto"), run, state);

// The fixed plots are for print, and for whoever wants them.
const fixed = document.querySelector("details.fixed");
if (fixed) {
  fixed.open = false;
  addEventListener("beforeprint", () => (fixed.open = true));
}
