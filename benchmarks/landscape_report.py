"""What follows from the raw seconds of the landscape benchmark, and how it is shown."""

from itertools import product
from statistics import median
from typing import Any

import numpy as np
from landscape_case import Floats

GRIDS = {"21x21": 21, "51x51": 51}
PEERS = {"plain_loop": "plain PEFT loop", "loss_landscapes": "loss-landscapes 3.0.6"}
RANGE_CAP = 2.0  # nats; errors are stated as a share of min(range, this), as in the package's own rule
Record = dict[str, Any]


def mesh(distance: float, cells: int) -> Floats:
    """(cells^2, 2) points of a grid over [-distance, distance]^2."""
    steps = np.linspace(-distance, distance, cells)
    return np.array(list(product(steps, steps)))


def summarise(repeats: list[Record], span: tuple[float, float]) -> Record:
    """Medians over the repeats: seconds per grid (scaled for the peers), ratios to ours, and ours' largest error."""
    each = {peer: seconds_per_cell(repeats, peer) for peer in PEERS}
    set_up = median(entry["loss_landscapes"]["setup_seconds"] for entry in repeats)
    seconds = {
        "plain_loop": {grid: n**2 * each["plain_loop"] for grid, n in GRIDS.items()},
        "loss_landscapes": {grid: set_up + n**2 * each["loss_landscapes"] for grid, n in GRIDS.items()},
        "ours": {
            grid: median(entry["ours"]["seconds"] + entry["ours"]["surface_seconds"][grid] for entry in repeats)
            for grid in GRIDS
        },
    }
    errors = [error for entry in repeats for error in entry["plain_loop"]["errors_of_ours"]]
    scale = min(span[1] - span[0], RANGE_CAP)
    return {
        "seconds": seconds,
        "seconds_per_cell": each,
        "cells_timed": {peer: sum(len(entry[peer]["seconds"]) for entry in repeats) for peer in PEERS},
        "set_up_seconds_loss_landscapes": set_up,
        "evaluations_of_ours": repeats[0]["ours"]["evaluations"],
        "ratios": {peer: {grid: seconds[peer][grid] / seconds["ours"][grid] for grid in GRIDS} for peer in PEERS},
        "largest_error_of_ours": max(errors),
        "largest_error_relative": max(errors) / scale if scale else None,
        "error_cells": len(errors),
    }


def seconds_per_cell(repeats: list[Record], peer: str) -> float:
    """Median over the repeats of the mean over a repeat's cells."""
    return median(sum(entry[peer]["seconds"]) / len(entry[peer]["seconds"]) for entry in repeats)


def print_case(record: Record) -> None:
    """What is measured, and on what."""
    machine, versions, items = record["machine"], record["peer_versions"], record["items"]
    differences = record["given_directions_largest_difference"]
    print(f"adapter: {record['adapter']['origin']}")
    print(f"items: {items['count']}, {items['tokens']:,} tokens")
    print(f"machine: {machine['threads']} threads on {machine['cores']} cores, ", end="")
    print(", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft")))
    print("along given directions: " + ", ".join(f"{name} differs by {x:.0e}" for name, x in differences.items()))


def print_plane(plane: Record) -> None:
    """The table of one distance."""
    summary, rates = plane["summary"], [entry["sgemm_gflops"] for entry in plane["repeats"]]
    print(f"\ndistance {plane['distance']:g}; medians of {len(rates)} repeats; ", end="")
    print(f"sgemm meanwhile {min(rates):.0f} to {max(rates):.0f} GFLOP/s\n")
    print(f"{'':22}{'s/cell':>8}{'cells':>11}{'21 x 21':>11}{'51 x 51':>12}{'ratio':>11}{'ratio':>8}")
    cells = ", ".join(str(n**2) for n in GRIDS.values())
    for (peer, name), mark in zip(PEERS.items(), "*+", strict=True):
        seconds = "".join(f"{summary['seconds'][peer][grid]:9,.0f} s{mark}" for grid in GRIDS)
        ratios = "".join(f"{summary['ratios'][peer][grid]:8.1f}" for grid in GRIDS)
        print(f"{name:22}{summary['seconds_per_cell'][peer]:8.2f}{cells:>11}{seconds}{ratios}")
    seconds = "".join(f"{summary['seconds']['ours'][grid]:9,.1f} s " for grid in GRIDS)
    print(f"{'ours':22}{'':8}{summary['evaluations_of_ours']:>11}{seconds}{1:8}{1:8}")
    print_notes(plane)


def print_notes(plane: Record) -> None:
    """What was scaled from what, and how far ours is off."""
    summary, (lowest, highest) = plane["summary"], plane["loss_span"]
    timed, share = summary["cells_timed"], summary["largest_error_relative"]
    print(f"*  scaled from {timed['plain_loop']} random cells of 21 x 21")
    print(f"+  scaled from {timed['loss_landscapes']} cells, ", end="")
    print(f"plus {summary['set_up_seconds_loss_landscapes']:.1f} s of set-up once")
    print(f"ours, at {summary['error_cells']} further cells of the plain loop: ", end="")
    print(f"largest error {summary['largest_error_of_ours']:.2g} nats", end="")
    print("" if share is None else f", {share:.2%} of min(range, {RANGE_CAP:g} nats)", end="")
    print(f"; the loss goes from {lowest:.3f} to {highest:.3f}")
