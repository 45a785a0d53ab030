"""The page in a browser: headless Chromium opens it, a script clicks and types in it and writes down what it sees."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from convbench.bench.record import ENVIRONMENT_FILE, RECORDS_FILE, Record, append, load_results
from convbench.report import PAGE_FILE, tables, write_report
from convbench.report.pareto import Point, front
from convbench.spec import ConvSpec

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KERNELS = (3, 5, 11)
SIZES = (64, 128)
CASES = [f"n1 c1 o1 i{size}x{size} k{k} psame f32" for size, k in itertools.product(SIZES, KERNELS)]
#: backend → (milliseconds at each kernel size, error); scipy-fft is the same as fft but for noise
BACKENDS: dict[str, tuple[tuple[float, ...], float]] = {
    "direct": ((1.0, 2.0, 9.0), 9.0),
    "fft": ((4.0, 4.0, 4.0), 3.0),
    "scipy-fft": ((4.01, 4.01, 4.01), 3.5),
    "torch": ((20.0, 30.0, 50.0), 0.0),
    "refuser": ((), 0.0),
}
TIED = {"fft", "scipy-fft"}


def _record(case: str, backend: str, pass_: int) -> Record:
    times_ms, error = BACKENDS[backend]
    parsed = ConvSpec.parse(case)
    kind = "rival" if backend in ("scipy-fft", "torch") else "own"
    record = Record(run_id="r", case=case, spec=case, backend=backend, kind=kind, pass_=pass_, threads=1, device="cpu")
    record.flops_nominal = record.flops_executed = parsed.flops
    record.bytes_min = parsed.bytes_min
    if not times_ms:
        record.status, record.reason = "unsupported", "stride: 1 given, only 2 is done"
        return record
    shake = 1 + 0.01 * ((pass_ * (7 if backend == "fft" else 5)) % 6 - 2.5)  # 6 passes of it have no trend
    time_s = times_ms[KERNELS.index(parsed.kernel_size[0])] * 1e-3 * (1 + 3 * SIZES.index(parsed.input_size[0]))
    record.samples_s = [time_s * shake * (1 + 0.0001 * i) for i in range(-4, 5)]
    record.error_max_eps, record.error_bound_eps = error, 73.0
    return record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run of six passes with its page."""
    folder = tmp_path_factory.mktemp("run")
    environment = {"cases": CASES, "backends": list(BACKENDS), "threads": 1}
    (folder / ENVIRONMENT_FILE).write_text(json.dumps(environment), encoding="utf-8")
    for pass_, case, backend in itertools.product(range(1, 7), CASES, BACKENDS):
        record = _record(case, backend, pass_)
        if record.status == "ok" or pass_ == 1:
            append(folder / RECORDS_FILE, record)
    write_report(folder, baseline="scipy-fft")
    return folder


DRIVER = """
const all = (query) => [...document.querySelectorAll(query)];
const rows = () => all("#results tbody tr").filter((row) => !row.hidden);
const pairs = () => rows().map((row) => [row.dataset.backend, row.cells[0].title]);
const column = (index) => rows().map((row) => row.cells[index].textContent);
const head = (key) => document.querySelector(`#results th[data-key="${key}"]`);
const series = (id) => all(`#${id} .series`).map((group) => group.dataset.backend);
const unique = (names) => [...new Set(names)].sort();
const settle = () => new Promise((resolve) => setTimeout(resolve, 60));
const type = (name, value) => {
  const field = document.querySelector(`#filters [name="${name}"]`);
  field.value = value;
  field.dispatchEvent(new Event("input"));
};
const choose = (section, name, value) => {
  const box = document.querySelector(`#${section} [name="${name}"]`);
  box.value = value;
  box.dispatchEvent(new Event("change"));
};
const go = async (hash) => { location.hash = hash; await settle(); };
const seen = {};

// as opened: sorted and filtered by the address
seen.opened = { backends: unique(column(1)), times: column(TIME), sort: head("time").getAttribute("aria-sort"),
  pressed: all(".legend [aria-pressed=true]").map((button) => button.dataset.backend),
  boxes: all("#filters [name=backend]:checked").map((box) => box.value), lines: unique(series("lines")) };
await go("sort=time");
seen.up = pairs();
head("time").querySelector("button").click();
seen.down = pairs();
seen.downHash = location.hash;
head("backend").querySelector("button").click();
seen.byText = column(1);
head("status").querySelector("button").click();
seen.byStatus = column(2);
const box = (element) => element.getBoundingClientRect();
seen.caseWidth = box(head("case")).width;
seen.stuck = box(document.querySelector("#results tbody tr td")).left - box(head("case")).right;
seen.reason = box(document.querySelector("#results .reason[colspan]")).width;
seen.hints = document.querySelector("#results").closest("section").querySelectorAll(".hint").length;

await go("");
type("text", "k3 i64*");
seen.text = { rows: pairs(), count: document.getElementById("results-count").textContent, hash: location.hash };
type("text", "");
type("max.time_s", "5 ms");
type("min.kernel_size", "5");
seen.range = pairs();
type("max.time_s", "five");
seen.invalid = document.querySelector('[name="max.time_s"]').getAttribute("aria-invalid");
await go("");
document.querySelector('#filters [name=status][value=ok]').click();
seen.status = unique(column(1));
await go("");

// the legend and the quantity
const drawn = () => document.querySelector("#lines .series").innerHTML;
const before = drawn();
document.querySelector('.legend [data-backend="torch"]').click();
seen.legend = { lines: unique(series("lines")), hash: location.hash, rows: unique(column(1)), front: series("pareto") };
document.querySelector('.legend [data-backend="torch"]').click();
seen.again = { lines: unique(series("lines")), hash: location.hash };
const titles = () => all("#lines .title").map((text) => text.textContent);
seen.titles = titles();
for (const y of ["rate", "speedup", "error"]) {
  choose("lines", "y", y);
  seen[y] = { titles: titles(), hash: location.hash, redrawn: drawn() !== before };
}
choose("lines", "y", "speedup");
choose("lines", "base", "direct");
seen.base = { titles: titles(), hash: location.hash };
document.querySelector("#lines [name=logy]").click();
seen.linear = { hash: location.hash, ticks: all("#lines figure:first-child text").map((text) => text.textContent) };
await go("");

// a point explained to who has no mouse
const chart = document.querySelector("#lines .drawing svg");
chart.dispatchEvent(new Event("focus"));
const tip = document.querySelector("#lines .tip");
const first = tip.textContent;
chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", cancelable: true }));
seen.tip = { first, second: tip.textContent, hidden: tip.hidden };
chart.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
seen.tipGone = tip.hidden;

// who is fastest, and the front
const winner = (cell) => [cell.querySelector("strong").textContent, cell.classList.contains("tie")];
seen.next = document.querySelector("#map .cell small").textContent;
seen.map = all("#map tbody tr").map((row) => [...row.cells].slice(1).map(winner));
seen.mapHeads = [all("#map thead th"), all("#map tbody th")].map((heads) => heads.map((cell) => cell.textContent));
seen.front = all("#pareto [data-front=true]").map((group) => group.dataset.backend);
choose("pareto", "case", "3");
seen.thirdFront = all("#pareto [data-front=true]").map((group) => group.dataset.backend);
seen.labels = all("#pareto .series text").map((text) => text.textContent);

// an address that was shared, all of it at once; a link to a section leaves it
const shared = "sort=error&order=descending&text=k5&y=error&x=input_size&panel=1&no-backend=torch&case=2";
await go(shared);
const value = (query) => document.querySelector(query).value;
seen.shared = { hash: location.hash.slice(1), sort: head("error").getAttribute("aria-sort"), text: value("[name=text]"),
  x: value("#lines [name=x]"), panels: all("#lines figcaption").map((caption) => caption.textContent),
  pareto: value("#pareto [name=case]"), backends: unique(column(1)) };
await go("environment");
seen.anchor = { hash: location.hash.slice(1), backends: unique(column(1)) };
seen.fixed = { open: document.querySelector("details.fixed").open, plots: all(".fixed svg[role=img]").length };
dispatchEvent(new Event("beforeprint"));
seen.printed = document.querySelector("details.fixed").open;
seen.globals = ["data", "state", "run", "State", "svg"].filter((name) => name in window);

const outcome = document.createElement("pre");
outcome.id = "outcome";
outcome.textContent = JSON.stringify(seen);
document.body.append(outcome);
"""


def _time_column(page: str) -> int:
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", page[page.index('id="results"') :].partition("</thead>")[0])
    return heads.index("time")


@pytest.fixture(scope="module")
def seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Open the page once, drive it, and return what was seen."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    work = tmp_path_factory.mktemp("browser")
    page = (folder / PAGE_FILE).read_text(encoding="utf-8")
    driver = f'<script type="module">\n{DRIVER.replace("TIME", str(_time_column(page)))}</script>\n</body>'
    (work / "driven.html").write_text(page.replace("</body>", driver), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,2000",
        f"--user-data-dir={work / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        "--v=0", "--virtual-time-budget=20000", "--dump-dom",
        f"{(work / 'driven.html').as_uri()}#sort=time&order=descending&backend=fft&backend=direct",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, (console, done.stderr[-2000:])
    outcome: dict[str, Any] = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return outcome | {"console": console}


@pytest.fixture(scope="module")
def table(folder: Path) -> Any:
    return tables.figures(load_results(folder), "scipy-fft")


def test_the_console_stays_empty_and_nothing_is_global(seen: dict[str, Any]) -> None:
    """No error, no warning, no name left behind."""
    assert seen["console"] == []
    assert seen["globals"] == []


def test_the_page_names_no_address(folder: Path) -> None:
    """But that of SVG's namespace."""
    page = (folder / PAGE_FILE).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"'\s)]*", page)) == {"http://www.w3.org/2000/svg"}


def test_the_address_sorts_and_filters_as_the_page_opens(seen: dict[str, Any]) -> None:
    """Table, boxes, legend and lines agree."""
    opened = seen["opened"]
    assert opened["sort"] == "descending"
    for part in ("backends", "lines"):
        assert opened[part] == ["direct", "fft"]
    assert sorted(opened["boxes"]) == sorted(opened["pressed"]) == ["direct", "fft"]
    assert opened["times"][0] == "36.0 ms"
    assert opened["times"][-1] == "1.00 ms"


def test_a_number_sorts_both_ways_and_what_has_none_is_last(seen: dict[str, Any], table: Any) -> None:
    """Raw figures are compared; a text column sorts as text."""
    timed = table[table["time_s"].notna()].sort_values("time_s", kind="stable")
    order = [[row["backend"], row["case"]] for row in timed.to_dict("records")]
    refused = len(CASES)
    assert len(seen["up"]) == len(seen["down"]) == len(order) + refused
    for key, expected in (("up", order), ("down", order[::-1])):
        times = [timed.set_index(["backend", "case"])["time_s"][tuple(pair)] for pair in seen[key][:-refused]]
        wanted = [timed.set_index(["backend", "case"])["time_s"][tuple(pair)] for pair in expected]
        assert times == pytest.approx(wanted, rel=1e-5)
        assert {backend for backend, _ in seen[key][-refused:]} == {"refuser"}
    assert seen["downHash"] == "#sort=time&order=descending"
    assert seen["byText"] == sorted(seen["byText"])
    assert seen["byStatus"] == sorted(seen["byStatus"])  # a reason stands in the column of the status, and beyond it


def test_the_table_spends_its_width_on_what_needs_it(seen: dict[str, Any]) -> None:
    """The column of cases is as wide as they are, the next one begins where it ends; a reason has all the others."""
    assert seen["caseWidth"] < 150
    assert abs(seen["stuck"]) <= 1
    assert seen["reason"] > 600
    assert seen["hints"] == 1


def test_text_ranges_and_statuses_filter_rows(seen: dict[str, Any], table: Any) -> None:
    """Whole words with a star; quantities with units, also of the case; what is no quantity is said to be none."""
    assert {case for _, case in seen["text"]["rows"]} == {CASES[0]}
    assert seen["text"]["count"] == f"{len(BACKENDS)} of {len(BACKENDS) * len(CASES)} rows"
    assert seen["text"]["hash"] == "#text=k3+i64*"
    quick = table[(table["time_s"] <= 5e-3) & (table["kernel_size"] >= 5)]
    assert sorted(map(tuple, seen["range"])) == sorted(zip(quick["backend"], quick["case"], strict=True))
    assert seen["invalid"] == "true"
    assert seen["status"] == ["refuser"]


def test_the_legend_hides_a_backend_everywhere(seen: dict[str, Any]) -> None:
    """And shows it again; then the address is as it was."""
    timed = sorted(set(BACKENDS) - {"refuser"})
    assert seen["legend"]["lines"] == sorted(set(timed) - {"torch"})
    assert seen["legend"]["hash"] == "#no-backend=torch"
    assert "torch" not in seen["legend"]["rows"] + seen["legend"]["front"]
    assert seen["again"] == {"lines": timed, "hash": ""}


def test_another_quantity_is_drawn_anew(seen: dict[str, Any]) -> None:
    """With its own title and place in the address; a speed-up over whichever baseline; linear from zero."""
    assert "time of one call" in seen["titles"]
    for y, title in (
        ("rate", "GFLOP/s, of a direct sum's work"),
        ("speedup", "speed-up over scipy-fft"),
        ("error", "largest error / eps"),
    ):
        assert title in seen[y]["titles"]
        assert seen[y]["hash"] == f"#y={y}"
        assert seen[y]["redrawn"]
    assert "speed-up over direct" in seen["base"]["titles"]
    assert seen["base"]["hash"] == "#y=speedup&base=direct"
    assert seen["linear"]["hash"] == "#y=speedup&base=direct&logy=linear"
    assert "0×" in seen["linear"]["ticks"]


def test_points_are_explained_without_a_mouse(seen: dict[str, Any]) -> None:
    """Backend, case, time with its interval, speed-up, error, status; an arrow goes on to the next one."""
    assert seen["tip"]["first"].startswith("direct#1 i64x64 k31 ms (")
    for part in ("4.01× over scipy-fft (", "error 9 eps, bound 73 eps", "status: ok; the fastest of its case"):
        assert part in seen["tip"]["first"]
    assert seen["tip"]["second"].startswith("direct#2 i64x64 k52 ms (")
    assert (seen["tip"]["hidden"], seen["tipGone"]) == (False, True)


def test_the_map_has_winners_and_ties(seen: dict[str, Any], table: Any) -> None:
    """Rows and columns are the two numbers that vary; a tie is one for statistics.fastest; the lead is the table's."""
    assert seen["mapHeads"] == [["kernel size K", *map(str, KERNELS)], [f"i{size}x{size}" for size in SIZES]]
    others = table[(table["case"] == CASES[0]) & ~table["tied"] & table["time_s"].notna()]
    assert seen["next"].endswith(f", next {others['ratio_to_best'].min():.3g}×")
    assert seen["map"] == [[["direct", False], ["direct", False], ["tie: fft, scipy-fft", True]]] * len(SIZES)


def test_the_front_is_that_of_the_report(seen: dict[str, Any], table: Any) -> None:
    """For the case shown, and for another one chosen."""
    for key, case in (("front", CASES[0]), ("thirdFront", CASES[2])):
        rows = table[(table["case"] == case) & table["time_s"].notna()].to_dict("records")
        points = [Point(row["backend"], row["time_s"], row["error_max_eps"]) for row in rows]
        assert sorted(seen[key]) == sorted(point.backend for point in front(points))
    assert sorted(seen["front"]) == ["direct", "fft", "torch"]
    assert sorted(seen["thirdFront"]) == ["fft", "torch"]
    assert set(seen["thirdFront"]) <= set(seen["labels"])


def test_a_shared_address_brings_the_whole_view(seen: dict[str, Any]) -> None:
    """And a link to a section does not lose it."""
    shared = seen["shared"]
    assert shared["hash"] == "sort=error&order=descending&text=k5&y=error&x=input_size&panel=1&no-backend=torch&case=2"
    assert (shared["sort"], shared["text"], shared["x"], shared["pareto"]) == ("descending", "k5", "input_size", "2")
    assert shared["panels"] == ["k5"]
    assert seen["anchor"] == {"hash": shared["hash"], "backends": shared["backends"]}
    assert shared["backends"] == sorted(set(BACKENDS) - {"torch"})


def test_fixed_plots_wait_until_they_are_printed(seen: dict[str, Any]) -> None:
    assert seen["fixed"]["open"] is False
    assert seen["fixed"]["plots"] >= 4
    assert seen["printed"] is True
