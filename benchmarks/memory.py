"""Memory of every phase of a run: what --dry_run counts without weights, and what a process really takes with them.

    make bench-memory
    make bench-memory ARGS="--phase training"

The embedded model (SmolLM2-135M, float32) on this machine's CPU, batches of 16 items. Every phase runs in a fresh process, the piece
that is counted and the same batch. What was resident when the items had been read is taken off its largest resident memory; the
weights are loaded after that. Counted are tensors alone.

Everything is written to benchmarks/results/memory.json. Status 1 if a phase takes more than 15% more or less than was counted.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import psutil
import torch

from llm_forgetting.cli.main import parse_run
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.artifacts.meter import Meter
from llm_forgetting.experiment.cost.devices import this_cpu
from llm_forgetting.experiment.cost.lengths import ItemLengths, item_lengths
from llm_forgetting.experiment.cost.needs import PIECES, NeedsCounter
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.settings import model_settings

RESULTS = Path(__file__).resolve().parent / "results/memory.json"
AGREEMENT = 0.15
OPTIONS = (
    "--training.batch_size=16", "--evaluation.batch_size=16", "--landscape.num_items=16", "--landscape.batch_size=16",
    "--curvature.spectrum=true", "--curvature.power_steps=3", "--model.dtype=float32", "--model.device=cpu",
)  # fmt: skip


def main() -> int:
    """Count, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phase", choices=list(PIECES), action="append", help="default: all")
    parser.add_argument("--measure", choices=list(PIECES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    _, config = parse_run(OPTIONS)
    lengths = item_lengths(config, print)
    counter = counter_of(config, lengths)
    if options.measure:
        print(measured(options.measure, config, counter))
        return 0
    found = {need.phase: need for need in counter.needs(config, memory=this_cpu().capacity, gpu=False)}
    record = {}
    print(f"{'phase':18}{'counted':>9}{'measured':>10}  GB{'difference':>14}")
    for phase in options.phase or PIECES:
        command = [sys.executable, __file__, "--measure", phase]
        taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        counted = found[phase].peak_bytes
        record[phase] = {"counted": counted, "measured": taken, "difference": counted / taken - 1}
        print(f"{phase:18}{counted / 1e9:9.2f}{taken / 1e9:10.2f}{100 * (counted / taken - 1):+16.1f}%", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "phases": record}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(abs(entry["difference"]) > AGREEMENT for entry in record.values()))


def counter_of(config: ExperimentConfig, lengths: ItemLengths) -> NeedsCounter:
    """A counter for the configured backbone."""
    found = model_settings(config.model)
    assert found is not None
    return NeedsCounter(found.settings, lengths)


def measured(phase: str, config: ExperimentConfig, counter: NeedsCounter) -> int:
    """Largest resident memory of the phase beyond what was resident before the weights, bytes."""
    batches = counter.batches(config, memory=this_cpu().capacity, gpu=False)
    before = psutil.Process().memory_info().rss
    model = LanguageModel.load(config.model, config.lora, seed=0)
    with Meter() as meter:
        for _ in PIECES[phase](model, batches, config):
            pass
    return meter.reading().peak_memory_bytes - before


if __name__ == "__main__":
    sys.exit(main())
