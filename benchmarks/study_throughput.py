"""Cells of a study per minute: one worker of one thread, and two, side by side on the same cells.

    python benchmarks/study_throughput.py                 32 cells of studies/toy.yaml, twice each, in turn
    python benchmarks/study_throughput.py --cells 8 --repeats 1

Every repeat computes the same cells from nothing in a folder of its own. `throughput` counts from the first cell's end (workers
have been started and have imported everything by then), `whole` from the command's start. Written to
benchmarks/results/study_throughput.json.
"""

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

from llm_forgetting.engines.local import LocalEngine
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.study.plan import Plan, read_plan
from llm_forgetting.study.scheduler import StudyFolder, run_study

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/study_throughput.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    quiet_libraries()
    plan = read_plan(ROOT / "studies/toy.yaml")
    plan = dataclasses.replace(plan, cells=plan.cells[: options.cells])
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for repeat in range(options.repeats):
        for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
            found[workers].append(measure(plan, workers))
            print(
                f"{workers} worker(s): " + ", ".join(f"{k} {v:.2f}" for k, v in found[workers][-1].items()), flush=True
            )
    best = {n: {key: median(run[key] for run in runs) for key in runs[0]} for n, runs in found.items()}
    ratios = {key: best[2][key] / best[1][key] for key in ("throughput", "whole")}
    print(
        f"two workers against one: {ratios['throughput']:.2f} x the cells per minute ({ratios['whole']:.2f} x with the start)"
    )
    content = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "cells": len(plan.cells),
        "threads_per_worker": 1,
        "runs": found,
        "median": best,
        "ratio": ratios,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def measure(plan: Plan, workers: int) -> dict[str, float]:
    """Cells per minute of `workers` workers of one thread each."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        engine = LocalEngine(workers, 1)
        started = time.perf_counter()
        try:
            run_study(
                plan, StudyFolder(Path(folder)), engine, threads=1, tell=lambda line: ends.append(time.perf_counter())
            )
        finally:
            engine.close()
        done = len(list(Path(folder).glob("cells/*/record.json")))
    assert done == len(plan.cells) == len(ends), f"{done} of {len(plan.cells)} cells were computed"
    after_first = (len(ends) - 1) / (ends[-1] - ends[0])
    return {"throughput": 60 * after_first, "whole": 60 * len(ends) / (ends[-1] - started)}


if __name__ == "__main__":
    main()
