"""Memory of every phase of a run: what --dry_run counts without weights, and what a process really takes with them.

    make bench-memory
    make bench-memory ARGS="--phase training"

The embedded model (SmolLM2-135M, float32) on this machine's CPU, batches of 16 items. Every phase runs in fresh processes: the
piece that is counted, on the same batch. What was resident when the items had been read is taken off the largest resident
memory; the weights are loaded after that. In the first process every tensor has pages of its own (MALLOC_MMAP_THRESHOLD_),
which go back when it does, as with a GPU's allocator; in the second the system's allocator keeps what it likes.

Everything is written to benchmarks/results/memory.json. Status 1 if the first process takes 15% more or less than was counted.
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

from llm_forgetting.cli.run import parse_run
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.artifacts.meter import Meter
from llm_forgetting.experiment.cost.devices import this_cpu
from llm_forgetting.experiment.cost.lengths import ItemLengths, item_lengths
from llm_forgetting.experiment.cost.needs import PIECES, NeedsCounter
from llm_forgetting.models.adapter.adapted_model import target_layers
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
    print(f"{'phase':18}{'counted':>9}{'measured':>10}{'as it is':>10} GB{'difference':>14}")
    for phase in options.phase or PIECES:
        taken, kept = (in_a_process(phase, each) for each in ({"MALLOC_MMAP_THRESHOLD_": "65536"}, {}))
        counted = found[phase].peak_bytes
        record[phase] = {"counted": counted, "measured": taken, "as_it_is": kept, "difference": counted / taken - 1}
        row = f"{phase:18}{counted / 1e9:9.2f}{taken / 1e9:10.2f}{kept / 1e9:10.2f}"
        print(f"{row}{100 * (counted / taken - 1):+16.1f}%", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "phases": record}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(abs(entry["difference"]) > AGREEMENT for entry in record.values()))


def in_a_process(phase: str, environment: dict[str, str]) -> int:
    """`measured` in a process of its own."""
    command = [sys.executable, __file__, "--measure", phase]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return int(done.stdout.split()[-1])


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
    for layer in target_layers(model.peft_model).values():
        torch.nn.init.normal_(layer.lora_B[model.adapter].weight, std=0.01)  # a fresh adapter has no direction
    with Meter() as meter:
        for _ in PIECES[phase](model, batches, config):
            pass
    return meter.reading().peak_memory_bytes - before


if __name__ == "__main__":
    sys.exit(main())
