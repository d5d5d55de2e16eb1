"""Tasks of lm-evaluation-harness on a model that is loaded: its prompts, requests and metrics, sample by sample."""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forgetting.errors import UserError
from llm_forgetting.forgetting.harness_logs import Sample, samples_of, with_common_metrics
from llm_forgetting.models.any_module.preserved_state import preserve_model_state
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.quantisation import require_package

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

BATCH = 8
"""Requests per forward pass where evaluation.batch_size names no number."""


def require_tasks(names: Sequence[str], folder: Path | None) -> None:
    """UserError where the harness is not installed, or has no task, group or tag of one of the names."""
    if names:
        require_package("lm_eval", f"a probe of lm-evaluation-harness ({names[0]})")
        _manager(tuple(names), folder)


def harness_samples(
    model: LanguageModel, names: Sequence[str], folder: Path | None, limit: int | None, batch_size: int | None
) -> dict[str, list[Sample]]:
    """Samples of every named task or group, at the live checkpoint, as `lm_eval.simple_evaluate` gives them.

    The harness gets the model as it is, with its adapter, and a copy of the tokenizer, which it changes. Its few-shot examples
    and their seeds are its own; our random streams are as before afterwards.

    Args:
        model: At the checkpoint.
        names: Tasks, groups or tags of the harness.
        folder: Of further tasks, as YAML files.
        limit: The first samples of every task, None for all.
        batch_size: Requests per forward pass, None for `BATCH`.

    Returns:
        Samples by name, in the harness' order.

    Raises:
        UserError: Where the harness cannot run a task, its data cannot be reached, or it has no metric per sample.
    """
    manager = _manager(tuple(names), folder)
    with _quiet(), preserve_model_state(model.peft_model), model.computing():
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        harness = HFLM(pretrained=model.peft_model, tokenizer=deepcopy(model.tokenizer), batch_size=batch_size or BATCH)
        return {name: _evaluated(lm_eval.simple_evaluate, name, harness, manager, limit) for name in names}


def _evaluated(
    evaluate: Callable[..., Mapping[str, Any]], name: str, harness: object, manager: "TaskManager", limit: int | None
) -> list[Sample]:
    """The samples of all tasks of a name."""
    try:
        found = evaluate(
            model=harness, tasks=[name], task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0
        )
    except (OSError, ImportError, ValueError, LookupError, AssertionError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"lm-evaluation-harness must be able to run {name}, and is not ({type(error).__name__}: {said}); where data are "
            f"missing, let it fetch them once with a network, or leave harness:{name} out"
        ) from error
    samples = with_common_metrics([one for task, logs in found["samples"].items() for one in samples_of(task, logs)])
    if not samples:
        raise UserError(
            f"harness:{name} must have a metric with one number per sample, which paired changes need, and has none; take "
            f"another task"
        )
    return samples


@functools.cache
def _manager(names: tuple[str, ...], folder: Path | None) -> "TaskManager":
    """The harness' index of tasks; its own some thousand files are read only where `folder` does not hold all names."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"data.harness_tasks must be a folder of YAML files, {folder} is none")
    with _quiet():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
        if folder is not None and not set(names) <= set(manager.all_tasks):
            manager = TaskManager(include_path=str(folder))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"lm-evaluation-harness has no task, group or tag {unknown[0]!r}; `lm-eval ls tasks` lists them, "
            f"data.harness_tasks names a folder with your own"
        )
    return manager


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' bars, warnings and lines."""
    log = logging.getLogger("lm_eval")
    level = log.level
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)
