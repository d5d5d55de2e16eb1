"""What an exact Hessian-vector product takes: hessian-eigenthings 1.0.0a5 and ours, on one adapter and the same items.

    make bench-curvature
    make bench-curvature ARGS="--repeats 1"        a quick look

Both compute the product of the Hessian of the mean loss of 16 items with one random vector, in the coordinates of lora_A and
lora_B, in one micro-batch of all items. They take turns, each in a fresh process with its own model and the same number of
threads, which computes the product twice: the first tells the memory, the most that the process held in it beyond what it held
before, and the second the seconds. Ours includes merging the adapter and undoing that. The products are compared entry by
entry; differences of gradients are held against the peer's differences of gradients only.

Everything is written to benchmarks/results/curvature.json. The last line is `ratio: X`: seconds of the peer over ours, medians
over the repeats, exact products. Status 1 if the exact products differ by more than 1e-4.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from landscape_case import add_options, load_case
from peers import Worker, environment
from safetensors.torch import load_file

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.provenance import versions

RESULTS = Path(__file__).resolve().parent / "results/curvature.json"
ITEMS = 16
AGREEMENT = 1e-4
# What each is called, and the peer's name for it.
METHODS = {"exact": "autograd", "differences": "finite_difference"}
Record = dict[str, Any]


def main() -> int:
    """Set up, measure, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    python = environment(tell)
    case = load_case(options, tell)
    case = dataclasses.replace(case, items=case.items[:ITEMS])
    record: Record = {
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": versions(),
        "adapter": {"origin": case.origin, "sha256": case.model.adapter_sha256()},
        "items": {"count": len(case.items), "tokens": case.tokens, "sha256_of_ids": case.items_sha256},
        "micro_batch": ITEMS,
        "repeats": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        case.write(folder, seed=0, batch_size=ITEMS)
        for number in range(options.repeats):
            tell(f"repeat {number + 1} of {options.repeats}")
            names = list(METHODS)[: 1 if number else None]  # differences once
            record["repeats"].append({name: turn(python, name, number, folder) for name in names})
    record["summary"] = summary = {name: summarise(record["repeats"], name) for name in METHODS}
    show(record)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nall raw figures: benchmarks/results/{RESULTS.name}")
    print(f"ratio: {summary['exact']['ratio_of_seconds']:.2f}")
    return 0 if summary["exact"]["largest_difference"] <= AGREEMENT else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--repeats", type=int, default=3, help="turns of both (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both")
    return parser.parse_args()


def tell(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def turn(python: Path, name: str, number: int, folder: Path) -> Record:
    """The product along one vector by both, and how far they are apart."""
    files = {who: folder / f"{who}_{name}.safetensors" for who in ("ours", "peer")}
    ours = Worker(Path(sys.executable), "llm_forgetting", folder, "our_worker.py")
    found = {"ours": twice(ours, name, number, files["ours"])}
    found["peer"] = twice(Worker(python, "hessian_eigenthings", folder), METHODS[name], number, files["peer"])
    exact = folder / "ours_exact.safetensors"
    return {
        **found,
        "relative_difference": apart(files["ours"], files["peer"]),
        "from_exact": {who: apart(file, exact) for who, file in files.items()},
    }


def apart(first: Path, second: Path) -> float:
    """|x - y| / |y| of two written products."""
    x, y = load_file(first), load_file(second)
    if x.keys() != y.keys():
        raise RuntimeError("the two do not have the same parameters")
    pairs = [(x[key].double().flatten(), y[key].double().flatten()) for key in x]
    return float((sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5)


def twice(worker: Worker, method: str, seed: int, into: Path) -> Record:
    """Seconds of the second product, peak of the first (whose memory the process may keep)."""
    with worker:
        cold, warm = (worker.ask("product", method=method, seed=seed, into=str(into)) for _ in range(2))
        return {**warm, "first_seconds": cold["seconds"], "peak_bytes": cold["peak_bytes"], "versions": worker.versions}


def summarise(repeats: list[Record], name: str) -> Record:
    """Medians over the repeats, and the peer's over ours."""
    seconds, peaks = (
        {who: median(entry[name][who][key] for entry in repeats if name in entry) for who in ("ours", "peer")}
        for key in ("seconds", "peak_bytes")
    )
    return {
        "seconds": seconds,
        "peak_bytes": peaks,
        "ratio_of_seconds": seconds["peer"] / seconds["ours"],
        "ratio_of_memory": peaks["peer"] / peaks["ours"],
        "largest_difference": max(entry[name]["relative_difference"] for entry in repeats if name in entry),
        "from_exact": repeats[0][name]["from_exact"],
    }


def show(record: Record) -> None:
    """A table on stdout."""
    machine, items = record["machine"], record["items"]
    print(f"adapter: {record['adapter']['origin']}")
    print(f"items: {items['count']}, {items['tokens']:,} tokens, one micro-batch")
    print(
        f"machine: {machine['threads']} threads on {machine['cores']} cores; medians of {len(record['repeats'])} repeats\n"
    )
    print(f"{'':34}{'s':>8}{'peak GB':>10}")
    for name, found in record["summary"].items():
        for who, label in (("peer", f"hessian-eigenthings, {METHODS[name]}"), ("ours", f"ours, {name}")):
            print(f"{label:34}{found['seconds'][who]:8.1f}{found['peak_bytes'][who] / 1e9:10.2f}")
        print(
            f"{'':34}{found['ratio_of_seconds']:7.2f}x{found['ratio_of_memory']:9.2f}x   "
            f"relative difference {found['largest_difference']:.1e}"
        )
        if name != "exact":
            far = found["from_exact"]
            print(f"{'':34}from the exact product: peer {far['peer']:.1e}, ours {far['ours']:.1e}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
