"""How many workers fit on this machine, and what is said of them."""

import os
from collections.abc import Sequence

import psutil

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.engines.start import EngineChoice
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.cost.devices import own_device, this_cpu
from llm_forgetting.experiment.cost.fit import host_bytes, worker_bytes


def share_machine(
    workers: int | None,
    threads: int | None,
    configs: Sequence[ExperimentConfig],
    gpus: int = 0,
    jobs: int | None = None,
) -> tuple[int, int]:
    """Workers and threads of each: by default a worker per GPU, or else per two cores, and no more than memory
    holds, or than there are `jobs`, by default one for each of `configs`.

    UserError for more workers than the memory of the GPUs holds.
    """
    cores = os.cpu_count() or 1
    if workers is None:
        workers = max(1, min(gpus or cores // (threads or 2), _fitting(configs, gpus), jobs or len(configs)))
    elif workers > gpus > 0:
        device = own_device("auto")
        needed = worker_bytes(configs, device)
        most = gpus * max(1, int(device.memory / needed)) if needed else gpus
        if workers > most:
            raise UserError(
                f"--workers must be at most {most}, was {workers}: a worker needs {needed / 1e9:.1f} GB, and {gpus} "
                f"GPU{'s have' if gpus > 1 else ' has'} {device.memory / 1e9:.1f} GB{' each' if gpus > 1 else ''}"
            )
    return workers, threads or max(1, cores // workers)


def _fitting(configs: Sequence[ExperimentConfig], gpus: int) -> int:
    """How many workers the free memory of the host holds; on GPUs they keep what they load there, and not the weights."""
    each = host_bytes(configs) if gpus else worker_bytes(configs, this_cpu())
    return max(1, int(0.8 * psutil.virtual_memory().available / each)) if each else os.cpu_count() or 1


def described(engine: EngineChoice, workers: int, threads: int, gpus: int) -> str:
    """A line that says who computes."""
    where = f"{engine.name}, {gpus} GPU{'s' * (gpus > 1)}" if gpus else engine.name
    where += ", which they share" if workers > gpus > 0 else ""
    return f"{workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)} ({where})"
