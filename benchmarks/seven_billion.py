"""LLaMA-2 7B's shape through the real command on a CPU: random weights in bfloat16, a SIGKILL in a scan, and `--resume`.

    python benchmarks/seven_billion.py                    13.5 GB of weights in a temporary folder; about an hour
    python benchmarks/seven_billion.py --model FOLDER     weights that are kept there for the next time
    python benchmarks/seven_billion.py --layers 1 --hidden 64      a minute: does the recipe still work?

Needs 17 GB of free memory and Linux. The run has the preset's model, adapter and checkpointing, at batch 1 with a handful of
synthetic items. Written to benchmarks/results/seven_billion.json.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from llm_forgetting.files.manifest import folder_digests
from llm_forgetting.models.language.backbones import synthetic_backbone

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/seven_billion.json"
JOURNAL = "phases/landscape_after_task1.journal"
"""Evaluations of the scan that is killed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = (options.model or Path(scratch, "model")).resolve()
        if not (model / "model.safetensors.index.json").exists():
            build(model, options.layers, options.hidden)
        start = time.perf_counter()
        folder_digests(model)
        content = {
            "machine": machine(),
            "layers": len(list(model.glob("*.safetensors"))) - 2,
            "weights_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
            "checksum_seconds": time.perf_counter() - start,
            **measure(model, Path(scratch)),
        }
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    show(content)


def build(folder: Path, layers: int, hidden: int) -> None:
    """A random Llama in LLaMA-2 7B's proportions, one safetensors file per layer, with the synthetic tasks' tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    wide, vocabulary = hidden * 43 // 16, 32_000
    LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5, dtype="bfloat16",
        tie_word_embeddings=False, architectures=["LlamaForCausalLM"], bos_token_id=None, eos_token_id=None, pad_token_id=1,
    ).save_pretrained(folder)  # fmt: skip
    AutoTokenizer.from_pretrained(synthetic_backbone(print)).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}

    def save(shard: int, matrices: dict[str, tuple[int, int]], norms: list[str]) -> None:
        name = f"model-{shard:05d}-of-{layers + 2:05d}.safetensors"
        tensors = {
            key: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for key, shape in matrices.items()
        }
        tensors |= {key: torch.ones(hidden, dtype=torch.bfloat16) for key in norms}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    attention = {f"self_attn.{letter}_proj": (hidden, hidden) for letter in "qkvo"}
    mlp = {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
    save(1, {"model.embed_tokens.weight": (vocabulary, hidden)}, [])
    for n in range(layers):
        of = {f"model.layers.{n}.{name}.weight": shape for name, shape in (attention | mlp).items()}
        save(n + 2, of, [f"model.layers.{n}.{place}_layernorm.weight" for place in ("input", "post_attention")])
    save(layers + 2, {"lm_head.weight": (vocabulary, hidden)}, ["model.norm.weight"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def configuration(model: Path, scratch: Path) -> dict[str, dict[str, object]]:
    """The preset with numbers that a CPU can bear: one item of 24 tokens a split, 9 points of a plane in three forwards."""
    text = scratch / "text.txt"
    text.write_text("stone river\n")
    return {
        "model": {"name": str(model), "dtype": "bfloat16"},
        "lora": {"rank": 16, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        "data": {
            "source": "synthetic", "tasks": ["synthetic_1", "synthetic_2"], "train_items": 1, "test_items": 1,
            "max_tokens": 24,
        },
        "training": {"batch_size": 1, "num_epochs": 1, "learning_rate": 2e-4, "gradient_checkpointing": True},
        "evaluation": {"rotations": False, "recovery_items": 0, "text": str(text)},
        "landscape": {
            "method": "grid", "resolution": 3, "directions": 2, "num_items": 1, "self_test_items": 1, "tasks": "first",
            "points_per_forward": 3, "checkpoint_plane": False, "paths": False,
        },
        "output": {"folder": str(scratch / "outputs")},
    }  # fmt: skip


def measure(model: Path, scratch: Path) -> dict[str, object]:
    """The run until its scan has made an evaluation, a SIGKILL, and the run that goes on from there."""
    file = scratch / "seven_billion.yaml"
    file.write_text(yaml.safe_dump(configuration(model, scratch)))
    with Watched(["run", "--config", str(file)]) as first:
        while first.process.poll() is None:
            time.sleep(0.1)
            if any(path.stat().st_size > 1000 for path in scratch.glob(f"outputs/*/{JOURNAL}")):
                first.process.send_signal(signal.SIGKILL)
    (folder,) = scratch.glob("outputs/experiment_*")
    journal, before = (folder / JOURNAL).stat().st_size, folder_digests(folder / "phases")
    with Watched(["run", "--resume", str(folder)]) as second:
        second.process.wait()
    if second.process.returncode:
        raise SystemExit("\n".join(line for _, line in second.lines))
    results, after = json.loads((folder / "results.json").read_text()), folder_digests(folder / "phases")
    test = results["landscapes"]["after_task1"]["gauge_self_test"]
    return {
        "killed": first.figures() | {"returncode": first.process.returncode, "journal_bytes": journal},
        "resumed": second.figures(),
        "phases_kept": sorted(name for name in before if name.endswith(".json") and before[name] == after.get(name)),
        "phases": results["timings"],
        "gauge_self_test": {"passed": test["passed"], "relative_difference": test["value_relative_difference"]},
    }


class Watched:
    """A command of llm-forgetting as a process: its lines, when they came, and its memory ten times a second."""

    def __init__(self, arguments: list[str]) -> None:
        self._command = [sys.executable, "-m", "llm_forgetting", *arguments]
        self.lines: list[tuple[float, str]] = []
        self._most = {"VmRSS": 0, "RssAnon": 0}

    def __enter__(self) -> "Watched":
        self._start = time.perf_counter()
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._threads = [threading.Thread(target=work) for work in (self._read, self._sample)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        for thread in self._threads:
            thread.join()
        self._seconds = time.perf_counter() - self._start

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append((time.perf_counter() - self._start, line.rstrip()))
            print(f"{self.lines[-1][0]:7.0f} s  {line}", end="", flush=True)

    def _sample(self) -> None:
        while self.process.poll() is None:
            try:
                status = Path(f"/proc/{self.process.pid}/status").read_text()
            except OSError:
                return
            for name in self._most:
                if found := re.search(rf"{name}:\s+(\d+) kB", status):
                    self._most[name] = max(self._most[name], 1024 * int(found[1]))
            time.sleep(0.1)

    def figures(self) -> dict[str, object]:
        """Seconds, bytes, and how long the terminal said nothing."""
        times = [0.0, *(at for at, _ in self.lines), self._seconds]
        return {
            "seconds": self._seconds,
            "peak_resident_bytes": self._most["VmRSS"],
            "peak_anonymous_bytes": self._most["RssAnon"],
            "first_line_seconds": times[1],
            "longest_silence_seconds": max(b - a for a, b in pairwise(times)),
        }


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{model[1] if model else 'CPU'}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def show(content: dict[str, object]) -> None:
    print(json.dumps({key: value for key, value in content.items() if key != "phases"}, indent=1))
    print(f"{'phase':32}{'seconds':>10}{'peak GB':>10}")
    for name, timing in content["phases"].items():
        print(f"{name:32}{timing['wall_seconds']:10.1f}{timing['peak_memory_bytes'] / 1e9:10.2f}")


if __name__ == "__main__":
    main()
