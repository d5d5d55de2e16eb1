"""Tasks of lm-evaluation-harness on saved checkpoints, and what changed between two on the same documents."""

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from llm_forgetting.config.sections import EvaluateConfig, LoraConfig
from llm_forgetting.experiment.pairs import NAMES, Checkpoint, described, open_one, require_pair
from llm_forgetting.experiment.tasks import HARNESS, harness_folder, harness_probes
from llm_forgetting.experiment.trained_items import require_whole_adapter
from llm_forgetting.forgetting.harness_logs import Sample
from llm_forgetting.forgetting.records import SampleRecord
from llm_forgetting.models.language.harness import harness_samples, require_tasks
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.progress import Progress
from llm_forgetting.results.harness import HarnessLog


def evaluate_in_harness(
    config: EvaluateConfig, checkpoints: Sequence[Checkpoint], limit: int | None, progress: Progress
) -> list[HarnessLog]:
    """A log per checkpoint (none: the bare backbone) of the tasks `harness:NAME` in data.probes.

    UserError for what the user can mend.
    """
    names, folder = harness_probes(config.data), harness_folder(config.data)
    require_tasks(names, folder)
    if len(checkpoints) == 2:
        require_pair((checkpoints[0], checkpoints[1]), config.model)
    for checkpoint in checkpoints:
        if checkpoint is not None:
            require_whole_adapter(checkpoint)
    logs = []
    for checkpoint in checkpoints or (None,):
        model = (
            open_one((checkpoint, *checkpoints), config.model, progress.note)
            if any(checkpoints)
            else LanguageModel.load(config.model, LoraConfig(rank=1), seed=0, notify=progress.note)
        )
        with progress.bar(f"{described(checkpoint)} in lm-evaluation-harness", len(names)) as advance:
            with model.bare() if checkpoint is None else nullcontext():
                samples = harness_samples(model, names, folder, limit, config.evaluation.batch_size)
            advance(len(names), "")
        logs.append(HarnessLog(Path(described(checkpoint)), "", samples, {}, dict.fromkeys(samples, "")))
        del model
        gc.collect()
    return logs


def sample_records(logs: Sequence[HarnessLog]) -> list[SampleRecord]:
    """The lines of items.jsonl; checkpoints are called A and B, a single one `evaluated`."""
    names = NAMES if len(logs) == 2 else ("evaluated",)
    return [
        _record(name, task, one)
        for name, log in zip(names, logs, strict=True)
        for task, samples in log.samples.items()
        for one in samples
    ]


def _record(checkpoint: str, task: str, one: Sample) -> SampleRecord:
    return SampleRecord(checkpoint, f"{HARNESS}{task}", "harness", one.id, one.task, one.hash, one.metrics, one.options)
