"""MMLU by lm-evaluation-harness 0.4.13 and by us: the same numbers, and how long they take.

    make bench-evaluation ARGS="--mmlu FOLDER"
    make bench-evaluation ARGS="--mmlu FOLDER --repeats 1 --subjects abstract_algebra"     a quick look

Both score every test row of the subjects, 0-shot and 5-shot, with the bare backbone and with an adapter, each in a process of
its own with the same number of threads: the harness at batch 8 through its own wrapper of the same model, ours as
`llm-forgetting evaluate` does. They take turns. Timed is the scoring of a subject from its rows on, prompts, tokens and the
shared beginning included; loading the model is not. Log-likelihoods are compared item by item and option by option,
accuracies and standard errors as numbers.

Everything but the questions is written to benchmarks/results/evaluation.json. The last line is `ratio: X`: seconds of the
harness over ours, medians over the repeats, abstract_algebra 5-shot, bare backbone. Status 1 if a log-likelihood differs by
more than 1e-4 or an accuracy or standard error at all.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from landscape_case import HERE, MODEL, SHARED
from peers import Worker, environment

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.provenance import versions
from llm_forgetting.models.language.backbones import backbone_location
from llm_forgetting.tasks.sources import open_source

RESULTS = HERE / "results/evaluation.json"
SHOTS = (0, 5)
BATCH, MAX_TOKENS = 8, 2048
AGREEMENT = 1e-4
KEPT = ("accuracy", "stderr", "seconds")
TIMED = ("backbone", "abstract_algebra", 5)
Record = dict[str, Any]


def main() -> int:
    """Set up, measure, print, write."""
    options = parse()
    transformers.utils.logging.set_verbosity_error()
    python = environment(tell)
    adapters = {"backbone": None, **({"adapted": options.adapter} if options.adapter else {})}
    cases = [(model, subject, shots) for model in adapters for subject in options.subjects for shots in SHOTS]
    turns: list[Record] = []
    with tempfile.TemporaryDirectory() as scratch:
        for model, adapter in adapters.items():
            folder = Path(scratch) / model
            folder.mkdir()
            write_case(folder, adapter, options)
            for number in range(options.repeats):
                wanted = [case for case in cases if case[0] == model and (not number or case == TIMED)]
                if wanted:
                    tell(f"{model}, repeat {number + 1} of {options.repeats}")
                    turns += turn(python, folder, wanted)
    record: Record = {
        "machine": {
            "cores": os.cpu_count(),
            "threads": options.threads,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {**versions(), "lm_eval": turns[0]["harness_version"]},
        "adapter": options.adapter and options.adapter.name,
        "summary": [summarise(case, turns) for case in cases],
        "turns": [
            {**entry, **{who: {k: v for k, v in entry[who].items() if k in KEPT} for who in ("harness", "ours")}}
            for entry in turns
        ],
    }
    show(record)
    if options.record:
        write_recorded(options, turns)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nall raw figures: benchmarks/results/{RESULTS.name}")
    agreed = all(found["agrees"] for found in record["summary"])
    timed = [found for found in record["summary"] if (found["model"], found["subject"], found["shots"]) == TIMED]
    if timed:
        print(f"ratio: {timed[0]['ratio']:.2f}")
    return 0 if agreed else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mmlu, adapter = SHARED / "data/mmlu", SHARED / "oracles/adapters/after_task1"
    parser.add_argument(
        "--mmlu", type=Path, default=mmlu if mmlu.is_dir() else None, help="MMLU's original folder (dev/, val/, test/)"
    )
    parser.add_argument(
        "--adapter", type=Path, default=adapter if adapter.is_dir() else None, help="PEFT folder of a LoRA adapter"
    )
    parser.add_argument("--subjects", type=lambda text: text.split(","), default=["abstract_algebra", "anatomy"])
    parser.add_argument("--repeats", type=int, default=3, help="turns of the case that is timed (default 3)")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="also write the harness's log-likelihoods, for the tests"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both")
    options = parser.parse_args()
    if options.mmlu is None:
        parser.error("--mmlu must name MMLU's original folder: the 5 examples of each subject are in its dev/")
    return options


def tell(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def write_case(folder: Path, adapter: Path | None, options: argparse.Namespace) -> None:
    """case.json and the rows, for both workers."""
    source = open_source(source="local", path=str(options.mmlu))
    for subject in options.subjects:
        pool = source.pool(subject, (subject,))
        rows = {"dev": pool.shots[subject], "test": [item for item in pool.rows if item.id.split("/")[1] == "test"]}
        for split, items in rows.items():
            lines = [
                json.dumps({"question": item.question, "choices": item.choices, "answer": item.answer})
                for item in items
            ]
            (folder / f"{subject}_{split}.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "backbone": str(backbone_location(MODEL.name, tell)),
        "adapter": adapter and str(adapter.resolve()),
        "mmlu": str(options.mmlu.resolve()),
        "threads": options.threads,
        "batch_size": BATCH,
        "max_length": MAX_TOKENS,
    }
    (folder / "case.json").write_text(json.dumps(content))


def turn(python: Path, folder: Path, cases: list[tuple[str, str, int]]) -> list[Record]:
    """Every case by both, one process after the other so that neither holds memory or threads of the other's time."""
    with Worker(python, "lm_eval", folder, "harness_worker.py") as harness:
        theirs = [harness.ask("score", subject=subject, shots=shots) for _, subject, shots in cases]
        version = harness.versions["lm_eval"]
    with Worker(Path(sys.executable), "llm_forgetting", folder, "evaluation_worker.py") as ours:
        mine = [ours.ask("score", subject=subject, shots=shots) for _, subject, shots in cases]
    return [
        {"model": model, "subject": subject, "shots": shots, "harness_version": version, "harness": a, "ours": b}
        for (model, subject, shots), a, b in zip(cases, theirs, mine, strict=True)
    ]


def write_recorded(options: argparse.Namespace, turns: list[Record]) -> None:
    """The harness's log-likelihoods of the bare backbone, to six decimals, and the right answers."""
    source = open_source(source="local", path=str(options.mmlu))
    cases = {}
    for entry in turns:
        if entry["model"] == "backbone":
            subject = entry["subject"]
            rows = [item for item in source.pool(subject, (subject,)).rows if item.id.split("/")[1] == "test"]
            rounded = [[round(x, 6) for x in row] for row in entry["harness"]["log_likelihoods"]]
            cases[subject, entry["shots"]] = {
                **{key: entry[key] for key in ("model", "subject", "shots")},
                **{key: entry["harness"][key] for key in ("accuracy", "stderr")},
                "answers": [item.answer for item in rows],
                "log_likelihoods": rounded,
            }
    content = {"lm_eval": turns[0]["harness_version"], "model": MODEL.name, "cases": list(cases.values())}
    options.record.write_text(json.dumps(content) + "\n")


def summarise(case: tuple[str, str, int], turns: list[Record]) -> Record:
    """Medians over the repeats, the harness's over ours, and the largest difference of a log-likelihood."""
    found = [entry for entry in turns if (entry["model"], entry["subject"], entry["shots"]) == case]
    seconds = {who: median(entry[who]["seconds"] for entry in found) for who in ("harness", "ours")}
    apart = max(
        abs(x - y)
        for entry in found
        for rows in zip(entry["harness"]["log_likelihoods"], entry["ours"]["log_likelihoods"], strict=True)
        for x, y in zip(*rows, strict=True)
    )
    same = all(
        abs(entry["harness"][key] - entry["ours"][key]) < 1e-12 for entry in found for key in ("accuracy", "stderr")
    )
    return {
        "model": case[0],
        "subject": case[1],
        "shots": case[2],
        "items": len(found[0]["ours"]["log_likelihoods"]),
        "accuracy": found[0]["ours"]["accuracy"],
        "stderr": found[0]["ours"]["stderr"],
        "largest_difference": apart,
        "agrees": same and apart <= AGREEMENT,
        "seconds": seconds,
        "ratio": seconds["harness"] / seconds["ours"],
    }


def show(record: Record) -> None:
    """A table on stdout."""
    machine = record["machine"]
    print(f"machine: {machine['threads']} threads on {machine['cores']} cores; seconds: medians of the repeats\n")
    print(
        f"{'':34}{'items':>6}{'accuracy':>10}{'stderr':>10}{'harness s':>11}{'ours s':>8}{'ratio':>7}  largest difference"
    )
    for found in record["summary"]:
        label = f"{found['model']}, {found['subject']}, {found['shots']}-shot"
        print(
            f"{label:34}{found['items']:6}{found['accuracy']:10.6f}{found['stderr']:10.6f}{found['seconds']['harness']:11.1f}"
            f"{found['seconds']['ours']:8.1f}{found['ratio']:7.2f}  {found['largest_difference']:.1e}"
            f"{'' if found['agrees'] else '  DOES NOT AGREE'}"
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
