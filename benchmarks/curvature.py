"""What an exact Hessian-vector product takes: hessian-eigenthings 1.0.0a5 and ours, on one adapter and the same items.

    make bench-curvature
    make bench-curvature ARGS="--repeats 1"        a quick look

Both compute the product of the Hessian of the mean loss of 16 items with one random vector, in the coordinates of lora_A and
lora_B, in one micro-batch of all items. They take turns, each in its own process with its own model and the same number of
threads. Seconds are of one product; memory is the most that the process held in it beyond what it held before. Ours includes
merging the adapter and undoing that. The products are compared entry by entry; differences of gradients are held against the
peer's differences of gradients only.

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
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from landscape_case import add_options, load_case
from peers import Worker, environment
from safetensors.torch import load_file

from llm_forgetting.errors import UserError
from llm_forgetting.results import versions

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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case.write(folder, seed=0, batch_size=ITEMS)
        peer = stack.enter_context(Worker(python, "hessian_eigenthings", folder))
        ours = stack.enter_context(Worker(Path(sys.executable), "llm_forgetting", folder, "our_worker.py"))
        record["peer_versions"] = peer.versions
        for number in range(options.repeats):
            tell(f"repeat {number + 1} of {options.repeats}")
            record["repeats"].append({name: turn(ours, peer, name, number, folder) for name in METHODS})
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


def turn(ours: Worker, peer: Worker, name: str, number: int, folder: Path) -> Record:
    """One product each, along the same vector, and how far they are apart."""
    files = [folder / f"{who}.safetensors" for who in ("ours", "peer")]
    found = {
        "ours": ours.ask("product", method=name, seed=number, into=str(files[0])),
        "peer": peer.ask("product", method=METHODS[name], seed=number, into=str(files[1])),
    }
    first, second = (load_file(file) for file in files)
    if first.keys() != second.keys():
        raise RuntimeError("the two do not have the same parameters")
    apart = sum(float((first[key].double().flatten() - second[key].double()).square().sum()) for key in first)
    size = sum(float(second[key].double().square().sum()) for key in second)
    return {**found, "relative_difference": (apart / size) ** 0.5}


def summarise(repeats: list[Record], name: str) -> Record:
    """Medians over the repeats, and the peer's over ours."""
    seconds, peaks = (
        {who: median(entry[name][who][key] for entry in repeats) for who in ("ours", "peer")}
        for key in ("seconds", "peak_bytes")
    )
    return {
        "seconds": seconds,
        "peak_bytes": peaks,
        "ratio_of_seconds": seconds["peer"] / seconds["ours"],
        "ratio_of_memory": peaks["peer"] / peaks["ours"],
        "largest_difference": max(entry[name]["relative_difference"] for entry in repeats),
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
