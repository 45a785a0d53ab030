"""Measure the two limits that tests never assert: the cost of ``import convbench`` and of one small planned call.

    python .ci/overhead.py [--processes 31]

Imports: the median over fresh processes, the rivals in turn within each round, so that a drift of the machine
falls on all alike. The call: cb.conv on 8×8 with K = 3, its plan
cached, by backend; the median of many short batches.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import timeit
from statistics import median

IMPORT_LIMIT_RATIO = 1.5
CALL_LIMIT_S = 30e-6
PROGRAM = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"


def import_times_s(statements: list[str], processes: int) -> dict[str, float]:
    """Return the median time that each statement takes in a process of its own."""
    samples: dict[str, list[float]] = {statement: [] for statement in statements}
    order, shuffle = list(statements), random.Random(0).shuffle
    for round_ in range(processes + 2):
        shuffle(order)
        for statement in order:
            command = [sys.executable, "-c", PROGRAM.format(statement=statement)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if round_ >= 2:  # the first two rounds fill the page cache and write .pyc files
                samples[statement].append(float(printed))
    return {statement: median(taken) for statement, taken in samples.items()}


def call_times_s(threads: int | None) -> dict[str, float]:
    """Return the median time of a cached call by backend that takes it."""
    import numpy as np

    import convbench as cb

    x, w = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
    times = {}
    for backend in ("auto", *cb.all_backends()):
        try:
            cb.conv(x, w, backend=backend, threads=threads)
        except cb.ConvbenchError:
            continue
        timer = timeit.Timer(lambda name=backend: cb.conv(x, w, backend=name, threads=threads))
        number = max(1, min(1000, int(0.02 / timer.timeit(3) * 3)))
        times[backend] = median(timer.repeat(15, number)) / number
    return times


def verdict(value: float, limit: float) -> str:
    """Return "ok" or "over"."""
    return "ok" if value <= limit else "OVER"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=31, help="fresh processes a statement (default 31)")
    processes = parser.parse_args().processes
    times = import_times_s(["import numpy", "import convbench"], processes)
    ratio = times["import convbench"] / times["import numpy"]
    print(f"import, median of {processes} processes:")
    for statement in ("import numpy", "import convbench"):
        print(f"  {statement:24} {times[statement] * 1e3:8.2f} ms")
    print(f"  ratio {ratio:.2f}, limit {IMPORT_LIMIT_RATIO}: {verdict(ratio, IMPORT_LIMIT_RATIO)}")
    for threads in (None, 1):
        calls = call_times_s(threads)
        print(f"cb.conv 8×8, K = 3, float32, planned, threads={threads}:")
        for backend, taken in calls.items():
            note = f"  limit {CALL_LIMIT_S * 1e6:.0f} µs: {verdict(taken, CALL_LIMIT_S)}" if backend == "auto" else ""
            print(f"  {backend:24} {taken * 1e6:8.1f} µs{note}")


if __name__ == "__main__":
    main()
