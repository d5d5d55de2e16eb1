"""How long a loss landscape takes: a plain PEFT loop, loss-landscapes 3.0.6, and ours, on one adapter and the same items.

    make bench-landscape                                     at the shipped default distance, and at twice it
    make bench-landscape ARGS="--repeats 1 --cells 2"        a quick look

The contestants take turns (ours, plain loop, loss-landscapes, ours, ...), each in its own process with its own model and the
same number of threads; only one works at a time. What is timed:

    ours              everything from the live adapter to the surface: SVD, directions, evaluations with their check points,
                      fit, and the surface at 21 x 21 and 51 x 51
    plain loop        setting A and B of all layers and the loss of all items (batches of 16, padded to the longest of each,
                      forward with labels), at random cells of the 21 x 21 grid; scaled to all cells
    loss-landscapes   its random_plane over the LoRA matrices through GeneralModelWrapper, with the same forward, on a grid
                      of 2 x 2; its set-up once, its cells scaled to all cells

The plain loop's cells are none that ours evaluated: ours' error is measured on them. Everything, every repeat, is written to
benchmarks/results/landscape.json. The last line is `ratio: X`: plain loop over ours at 21 x 21, medians over the repeats, at
the default distance. Status 1 if two that should agree do not.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from landscape_case import Case, Scan, add_options, load_case
from landscape_ours import ours
from landscape_report import GRIDS, Record, mesh, print_case, print_plane, summarise
from peers import Worker, environment, given_directions

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.provenance import versions
from llm_forgetting.models.language.scoring import score
from llm_forgetting.seeding import generator

RESULTS = Path(__file__).resolve().parent / "results/landscape.json"
BATCH_SIZE = 16
SGEMMS = 20
AGREEMENT = 1e-4  # nats, between the contestants at the checkpoint


def main() -> int:
    """Set up, measure, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    python = environment(tell)
    differences = given_directions(python)
    case = load_case(options, tell)
    settings = ExperimentConfig().landscape
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case.write(folder, seed=settings.seed, batch_size=BATCH_SIZE)
        names = ("plain_loop", "loss_landscapes")
        contestants = Contestants(case, *(stack.enter_context(Worker(python, name, folder)) for name in names))
        record = {**contestants.describe(), "given_directions_largest_difference": differences}
        print_case(record)
        record["loss_at_checkpoint"] = losses = contestants.losses_at_checkpoint()
        distances = (settings.resolved_distance, 2 * settings.resolved_distance)
        turns = (options.repeats, options.far_repeats)
        record["planes"] = planes = [
            measure(contestants, distance, settings.seed, repeats, options.cells)
            for distance, repeats in zip(distances, turns, strict=True)
        ]
    for plane in planes:
        print_plane(plane)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    apart = max(losses.values()) - min(losses.values())
    print(
        f"\nat the checkpoint the three agree to {apart:.1e} nats; all raw seconds: benchmarks/results/{RESULTS.name}"
    )
    print(f"ratio: {planes[0]['summary']['ratios']['plain_loop']['21x21']:.1f}")
    return 0 if apart <= AGREEMENT else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--repeats", type=int, default=3, help="turns of every contestant (default 3)")
    parser.add_argument("--far-repeats", type=int, default=1, help="turns at twice the distance (default 1)")
    parser.add_argument("--cells", type=int, default=30, help="cells of the plain loop, over all repeats (default 30)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every contestant")
    options = parser.parse_args()
    if not all(1 <= repeats <= options.cells for repeats in (options.repeats, options.far_repeats)):
        parser.error("--cells must be at least --repeats and --far-repeats, and those at least 1")
    return options


def tell(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Contestants:
    """Ours lives in this process, as the case's own model; the others answer from theirs."""

    case: Case
    plain: Worker
    peer: Worker

    def describe(self) -> Record:
        """Machine, versions and case, without a host name or a path."""
        case = self.case
        return {
            "machine": {
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "system": f"{platform.system()} {platform.machine()}",
            },
            "versions": versions(),
            "peer_versions": self.peer.versions,
            "adapter": {"origin": case.origin, "sha256": case.model.adapter_sha256()},
            "items": {"count": len(case.items), "tokens": case.tokens, "sha256_of_ids": case.items_sha256},
            "sgemm_shape": case.sgemm_shape,
        }

    def losses_at_checkpoint(self) -> dict[str, float]:
        """The loss where all three are at the same point; also everyone's warm-up."""
        return {
            "ours": float(score(self.case.model, self.case.items, BATCH_SIZE).surface("loss")),
            "plain_loop": self.plain.ask("losses", cells=[(0.0, 0.0)])["losses"][0],
            "loss_landscapes": self.peer.ask("scan", steps=2, distance=1.0, seed=0)["losses"][-1][-1],
        }


def measure(on: Contestants, distance: float, seed: int, turns: int, cells: int) -> Record:
    """All repeats at one distance: raw seconds, and what follows from them."""
    repeats: list[Record] = []
    shares: Iterator[list[tuple[float, float]]] = iter(())
    for number in range(turns):
        tell(f"distance {distance:g}, repeat {number + 1} of {turns}")
        sgemm = on.plain.ask("sgemm", shape=on.case.sgemm_shape, repeats=SGEMMS)
        scan, own = time_ours(on.case, distance, seed)
        shares = shares if number else further_cells(scan, distance, cells, turns)
        chosen = next(shares)
        plain = on.plain.ask("losses", cells=chosen)
        errors = np.abs(scan.losses(np.array(chosen)) - plain["losses"]).tolist()
        peer = on.peer.ask("scan", steps=2, distance=distance, seed=number)
        repeats.append(
            {
                "sgemm_gflops": sgemm,
                "ours": own,
                "plain_loop": {"cells": chosen, **plain, "errors_of_ours": errors},
                "loss_landscapes": peer,
            }
        )
    surface = scan.losses(mesh(distance, GRIDS["21x21"]))
    span = (float(surface.min()), float(surface.max()))
    return {"distance": distance, "loss_span": span, "summary": summarise(repeats, span), "repeats": repeats}


def time_ours(case: Case, distance: float, seed: int) -> tuple[Scan, Record]:
    """One scan of ours: its evaluations, its seconds, and those of each surface that is drawn from it."""
    start = time.perf_counter()
    scan = ours(case.model, case.items, distance, seed)
    found: Record = {"evaluations": scan.evaluations, "seconds": time.perf_counter() - start, "surface_seconds": {}}
    for name, cells in GRIDS.items():
        start = time.perf_counter()
        scan.losses(mesh(distance, cells))
        found["surface_seconds"][name] = time.perf_counter() - start
    return scan, found


def further_cells(scan: Scan, distance: float, cells: int, turns: int) -> Iterator[list[tuple[float, float]]]:
    """Per turn a share of `cells` random cells of the 21 x 21 grid, none of which ours has evaluated."""
    grid = mesh(distance, GRIDS["21x21"])
    known = np.abs(grid[:, None] - scan.points).max(axis=2).min(axis=1) < 1e-9 * distance
    drawn = generator(0, "benchmark cells", distance).permutation(grid[~known])[:cells]
    return (share.tolist() for share in np.array_split(drawn, turns))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
