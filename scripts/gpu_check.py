"""What a CUDA GPU does with LLaMA-2 7B's shape: right numbers, memory and speed of every phase, in about eight minutes.

    python scripts/gpu_check.py                           on the GPU; no network, no weights, nothing is installed
    python scripts/gpu_check.py --device cpu --small      the same checks of a tiny model, about a minute: does the script work?

Every part is a process with a limit of its own, so that one that fails or hangs loses nothing of the others. The table is
printed at the end; all figures are in gpu_check.json, written after every part (docs/performance.md says what they mean).
Exit status: 0 if every part was done and agrees, 1 if not, 2 if the machine lacks something.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy", "psutil", "filelock", "yaml")
# Parts and their limits, seconds; 500 in all.
LIMITS = {"reference": 75, "quantised": 30, "phases": 220, "arithmetic": 75, "rows": 60, "synchronisations": 40}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model instead of LLaMA-2 7B's shape")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--part", choices=LIMITS, help="one part alone, in this process")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"gpu_check needs Python packages that are not here: {', '.join(missing)}", file=sys.stderr)
        return 2
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu_check needs a CUDA GPU, there is none; --device cpu --small tries the script itself", file=sys.stderr
        )
        return 2
    if options.part:
        return _compute(options)
    found: dict[str, Any] = {"machine": _machine(options), "parts": {}}
    for name, limit in LIMITS.items():
        found["parts"][name] = _part(name, limit * (4 if options.device == "cpu" else 1), options)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)))
    return 0 if all(not part["error"] for part in found["parts"].values()) and _agrees(found) else 1


def _compute(options: argparse.Namespace) -> int:
    from gpu_check_parts import PARTS

    def keep(figures: dict[str, Any]) -> None:
        options.output.write_text(json.dumps(figures, indent=1))

    PARTS[options.part](options.device, options.small, keep)
    return 0


def _part(name: str, limit: float, options: argparse.Namespace) -> dict[str, Any]:
    """One part in a process of its own: its figures, as far as it came, and what went wrong."""
    print(f"{name} (at most {limit} s)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "figures.json")
        command = [sys.executable, __file__, "--part", name, "--device", options.device, "--output", str(file)]
        start, error = time.perf_counter(), None
        try:
            ended = subprocess.run(
                [*command, *(["--small"] if options.small else [])],
                timeout=limit, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
            )  # fmt: skip
            if ended.returncode:
                error = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            error = f"not done within {limit} s"
        figures = json.loads(file.read_text()) if file.exists() else {}
    return {"seconds": time.perf_counter() - start, "error": error, "figures": figures}


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    import platform

    import torch
    import transformers

    machine = {
        "device": options.device,
        "small": options.small,
        "name": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {"name": properties.name, "memory_bytes": properties.total_memory}
    return machine


def _agrees(found: dict[str, Any]) -> bool:
    compared = [found["parts"][name]["figures"].get("comparisons", {}) for name in ("reference", "quantised")]
    return all(row["difference"] <= row["tolerance"] for rows in compared for row in rows.values())


def table(found: dict[str, Any]) -> list[str]:
    """Lines of at most 80 columns."""
    machine, parts = found["machine"], {name: part["figures"] for name, part in found["parts"].items()}
    lines = [f"{machine['name']}, torch {machine['torch']}, transformers {machine['transformers']}"[:80]]
    for row in (
        _reference_rows(parts["reference"])
        + _quantised_rows(parts["quantised"])
        + _phase_rows(parts["phases"])
        + _other_rows(parts)
    ):
        lines.append(row[:80])
    lines += [f"{name}: {part['error']}"[:80] for name, part in found["parts"].items() if part["error"]]
    return lines


def _reference_rows(figures: dict[str, Any]) -> list[str]:
    rows = ["", f"{'CPU against device':34}{'difference':>14}{'tolerance':>12}"]
    for name, row in figures.get("comparisons", {}).items():
        verdict = "" if row["difference"] <= row["tolerance"] else "  DIFFERS"
        rows.append(f"{name:34}{row['difference']:14.2g}{row['tolerance']:12.2g}{verdict}")
    return rows


def _quantised_rows(figures: dict[str, Any]) -> list[str]:
    return [f"quantised: {figures['skipped']}"] if "skipped" in figures else _reference_rows(figures)[2:]


def _phase_rows(figures: dict[str, Any]) -> list[str]:
    rates = figures.get("rates", {})
    rows = ["", "matrix products, TFLOP/s: " + ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())]
    rows.append(f"{'phase':22}{'peak GB':>9}{'reserved':>10}{'dry run':>9}{'seconds':>9}{'tokens/s':>10}{'of rate':>9}")
    for name, row in figures.get("phases", {}).items():
        if "error" in row:
            rows.append(f"{name:22}  {row['error']}")
            continue
        predicted = "-" if row["predicted_bytes"] is None else f"{row['predicted_bytes'] / 1e9:.1f}"
        rows.append(
            f"{name:22}{row['peak_bytes'] / 1e9:9.1f}{row['reserved_bytes'] / 1e9:10.1f}{predicted:>9}{row['seconds']:9.2f}"
            f"{row['tokens_per_second']:10.0f}{row['share_of_rate']:9.2f}"
        )
    return rows


def _other_rows(parts: dict[str, dict[str, Any]]) -> list[str]:
    rows = ["", f"{'arithmetic':14}{'roughness':>12}{'range':>10}{'self-test':>12}{'passed':>8}{'s a point':>11}"]
    for name, row in parts["arithmetic"].items():
        rows.append(
            f"{name:14}{row['roughness']:12.2g}{row['range']:10.2g}{row['self_test']:12.2g}"
            f"{'yes' if row['passed'] else 'no':>8}{row['seconds_per_point']:11.3g}"
        )
    rows += ["", f"{'points a forward':18}{'s a point':>11}{'peak GB':>9}"]
    for name, row in parts["rows"].items():
        rows.append(f"{name:18}{row['seconds_per_point']:11.3g}{row['peak_bytes'] / 1e9:9.1f}")
    rows += ["", f"{'synchronisations':18}{'a layer':>11}{'in all':>9}"]
    for name, row in parts["synchronisations"].items():
        rows.append(f"{name:18}{row['per_layer']:11.2g}{row['total']:9}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
