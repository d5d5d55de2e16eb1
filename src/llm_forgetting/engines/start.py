"""Engines by name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_forgetting.engines.engine import Engine
from llm_forgetting.engines.local import LocalEngine
from llm_forgetting.engines.ray import RayEngine
from llm_forgetting.engines.slurm import SlurmEngine
from llm_forgetting.errors import UserError
from llm_forgetting.files import Json

ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class EngineChoice:
    """Choice of an engine: its name; the address of a running Ray cluster; options for submitit (Slurm)."""

    name: str = "local"
    address: str | None = None
    slurm: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise UserError for an unknown engine, or options of another one."""
        if self.name not in ENGINES:
            raise UserError(f"engine must be one of {', '.join(ENGINES)}, was {self.name!r}")
        if self.address and self.name != "ray":
            raise UserError(f"--address is for --engine ray, which is {self.name}")
        if self.slurm and self.name != "slurm":
            raise UserError(f"--slurm is for --engine slurm, which is {self.name}")

    def start(self, workers: int, threads: int, gpus: Sequence[str], folder: Path) -> Engine:
        """The engine, with `workers` of `threads` CPU threads; `gpus` are this machine's, `folder` that of the computation."""
        if self.name == "ray":
            return RayEngine(workers, threads, self.address)
        if self.name == "slurm":
            return SlurmEngine(workers, threads, self.slurm, folder)
        return LocalEngine(workers, threads, gpus)


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(n) for n in range(count)]
