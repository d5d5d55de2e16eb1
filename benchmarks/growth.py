"""Growth of a run with the number of its tasks: files and seconds at T = 2, 4, 8, 16, and the exponents of both.

    make bench-growth
    make bench-growth ARGS="--tasks 57"                             (as many as MMLU has subjects; about half an hour)
    make bench-growth ARGS="--option landscape.tasks=all"           (every task measured everywhere)

Runs of the command line on generated questions with the random two-layer Llama of the preset smoke: 12 trained and 8 held-out
items per task, 4 items at every point of a landscape of 41 x 41 cells. Sizes are of the folder. Seconds are a processor's:
those of a phase times the share of a processor that the run had, so that other programs do not count; `the rest` is start-up,
files and figures. An exponent b is that of the fit size = a T^b, from T = 4 on.

Scores are of T + 1 checkpoints on T tasks, so items.jsonl, phases/evaluate_*.json and the seconds of evaluations grow as T^2;
they are marked, and held to no bar. Status 1 if anything else grows faster than T^1.2.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from llm_forgetting.models.language.backbones import synthetic_backbone
from llm_forgetting.tasks.synthetic import FILLERS, KEY_WORDS, OPTIONS

FITTED_FROM, BAR = 4, 1.2
# Smaller ones are rounding and start-up.
LEAST_BYTES, LEAST_SECONDS = 200_000, 5.0
SQUARE = ("items.jsonl", "phases/evaluate", "evaluate")
SETTINGS = {
    "lora.rank": 4, "training.batch_size": 12, "training.num_epochs": 2, "training.learning_rate": 0.01,
    "data.train_items": 12, "data.test_items": 8, "landscape.num_items": 4, "landscape.self_test_items": 2,
    "landscape.max_evaluations": 23, "landscape.directions": 2, "evaluation.recovery_items": 4,
    "evaluation.recovery_epochs": 1, "output.dpi": 50,
}  # fmt: skip


def main() -> int:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8, 16], metavar="T")
    parser.add_argument(
        "--option", action="append", default=[], metavar="PATH=VALUE", help="of the runs' configuration"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the runs stay")
    options = parser.parse_args()
    found: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        parent = options.keep or Path(scratch)
        write_questions(parent / "questions", max(options.tasks))
        for tasks in options.tasks:
            started, worked = time.perf_counter(), processor_seconds()
            folder = run(parent, tasks, options.option)
            wall, worked = time.perf_counter() - started, processor_seconds() - worked
            found[tasks] = sizes(folder), seconds(folder, wall, worked / wall)
            megabytes = sum(found[tasks][0].values()) / 1e6
            print(f"{tasks} tasks: {megabytes:.1f} MB, {worked:.0f} s of a processor ({wall:.0f} s)", flush=True)
    too_fast = [
        *show("size (MB)", {tasks: both[0] for tasks, both in found.items()}, 1e6, LEAST_BYTES),
        *show("seconds", {tasks: both[1] for tasks, both in found.items()}, 1.0, LEAST_SECONDS),
    ]
    print(f"grows faster than T^{BAR}: {', '.join(too_fast) or 'nothing but what is T^2 by nature (marked *)'}")
    return int(bool(too_fast))


def write_questions(folder: Path, tasks: int) -> None:
    """A file of questions per task: no two are the same, and every word is one that the model knows."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    places = rng.permutation(len(KEY_WORDS) * len(FILLERS) ** 3)
    for number in range(tasks):
        rows = []
        for place in places[24 * number : 24 * (number + 1)]:
            word, *others = np.unravel_index(place, (len(KEY_WORDS), *[len(FILLERS)] * 3))
            question = " ".join([KEY_WORDS[word], *(FILLERS[other] for other in others)])
            rows.append({"question": question, "choices": OPTIONS, "answer": int(word + number) % len(OPTIONS)})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"subject_{number + 1:02}.jsonl").write_text(text, encoding="utf-8")


def run(parent: Path, tasks: int, options: list[str]) -> Path:
    """The folder of a run on the first `tasks` tasks."""
    given = {
        "model.name": synthetic_backbone(print), "data.source": "local", "data.path": parent / "questions",
        "output.folder": parent / f"of_{tasks}", **SETTINGS,
    }  # fmt: skip
    words = [*(f"--{path}={value}" for path, value in given.items()), *(f"--{option}" for option in options)]
    names = ",".join(f"subject_{number + 1:02}" for number in range(tasks))
    command = [sys.executable, "-m", "llm_forgetting", "run", "--tasks", names, *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder,) = (parent / f"of_{tasks}").glob("experiment_*")
    return folder


def sizes(folder: Path) -> dict[str, float]:
    """Bytes by kind of file."""
    kinds: dict[str, Callable[[str], bool]] = {
        "results.json": lambda name: name == "results.json",
        "results.npz": lambda name: name == "results.npz",
        "items.jsonl": lambda name: name == "items.jsonl",
        "report.html": lambda name: name == "report.html",
        "results.md": lambda name: name == "results.md",
        "figures": lambda name: name.endswith((".png", ".pdf")),
        "checkpoints": lambda name: name.startswith("checkpoint_"),
        "phases/evaluate": lambda name: name.startswith("phases/evaluate"),
        "phases, others": lambda name: name.startswith("phases/"),
        "others": lambda name: True,
    }
    found = dict.fromkeys(kinds, 0.0)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        found[next(kind for kind, is_one in kinds.items() if is_one(name))] += path.stat().st_size
    return found


def processor_seconds() -> float:
    """What all runs so far have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(folder: Path, wall: float, share: float) -> dict[str, float]:
    """Seconds of a processor by kind of phase, and what the process took besides; `share` of one was the run's."""
    timings = json.loads((folder / "results.json").read_text(encoding="utf-8"))["timings"]
    found: dict[str, float] = {}
    for phase, timing in timings.items():
        if phase != "guards":  # it is within set-up
            kind = phase.partition("_after_task")[0].partition("_task")[0].partition("_initial")[0]
            found[kind] = found.get(kind, 0.0) + timing["wall_seconds"]
    found["the rest"] = wall - sum(found.values())
    return {phase: share * taken for phase, taken in found.items()}


def show(title: str, found: Mapping[int, Mapping[str, float]], unit: float, least: float) -> list[str]:
    """Print a table with the exponent of every row; the rows that grow too fast."""
    kinds = [kind for kind in dict.fromkeys(kind for row in found.values() for kind in row) if kind not in SQUARE]
    rows = {kind: [row.get(kind, 0.0) for row in found.values()] for kind in [*kinds, *SQUARE]}
    rows["all but *"] = [sum(row.get(kind, 0.0) for kind in kinds) for row in found.values()]
    print(f"\n{title:22}" + "".join(f"{f'T = {tasks}':>10}" for tasks in found) + f"{'exponent':>10}")
    too_fast = []
    for kind, values in rows.items():
        if not any(values):
            continue
        power = exponent(list(found), values)
        marked = f"{kind} *" if kind in SQUARE else kind
        print(f"{marked:22}" + "".join(f"{value / unit:10.2f}" for value in values) + f"{power:10.2f}")
        if kind not in SQUARE and power > BAR and max(values) >= least:
            too_fast.append(kind)
    return too_fast


def exponent(tasks: list[int], values: list[float]) -> float:
    """b of value = a T^b by least squares of logarithms, from FITTED_FROM tasks on; NaN for fewer than two points."""
    points = [(math.log(t), math.log(v)) for t, v in zip(tasks, values, strict=True) if t >= FITTED_FROM and v > 0]
    if len(points) < 2:
        return math.nan
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


if __name__ == "__main__":
    sys.exit(main())
