"""Accuracy of a backbone or of anyone's saved adapter on whole test splits, as lm-evaluation-harness measures it."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llm_forgetting.config.sections import DataConfig, EvaluateConfig, LoraConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts import provenance
from llm_forgetting.experiment.artifacts.item_records import item_records
from llm_forgetting.experiment.pairs import NAMES, Pair, open_one, require_pair
from llm_forgetting.experiment.tasks import source_of
from llm_forgetting.experiment.trained_items import TrainedItems, require_whole_adapter, trained_items
from llm_forgetting.files import from_plain
from llm_forgetting.files.manifest import unchecked
from llm_forgetting.forgetting.evaluation import PooledAccuracy, SubjectEvaluation, TaskEvaluation
from llm_forgetting.forgetting.intervals import Proportion, pooled_stderr, proportion
from llm_forgetting.forgetting.mean_intervals import estimate_mean
from llm_forgetting.forgetting.paired_evaluation import task_changes
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import merged, passes, score_tasks
from llm_forgetting.progress import Progress
from llm_forgetting.results import Evaluated, EvaluationResults, ModelDescription
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.task import AnyItem, Pool

EVALUATED = "evaluated"


def evaluate_adapter(
    config: EvaluateConfig, adapter: Path | None, limit: int | None, progress: Progress
) -> tuple[EvaluationResults, list[ItemRecord]]:
    """What evaluation.json holds, and the lines of items.jsonl.

    Every row of a subject's test split is scored, in file order, without anything taken out (of sources without splits, every
    row); `limit` keeps the first rows of each subject. Few-shot examples are the first of the source's own few-shot rows.
    `adapter` None is the bare backbone. Rows that the adapter was trained on are counted apart, where it is of a run of ours.
    UserError for what the user can mend.
    """
    if adapter is not None:
        require_whole_adapter(adapter)
    source, chosen = _chosen(config, limit, progress)
    model = (
        LanguageModel.load(config.model, LoraConfig(rank=1), seed=0, notify=progress.note)
        if adapter is None
        else LanguageModel.open_adapter(adapter, config.model, progress.note)
    )
    found, records = _evaluate(model, adapter, chosen, config, progress, name=EVALUATED)
    return _results(config, source, limit, found), records


def evaluate_pair(
    config: EvaluateConfig, pair: Pair, limit: int | None, progress: Progress
) -> tuple[EvaluationResults, list[ItemRecord]]:
    """`evaluate_adapter` of A and of B on the same items, and what changed from A to B.

    The two are loaded one after the other, so that either may be of any rank or kind. UserError as there, and where they are
    not of one backbone.
    """
    require_pair(pair, config.model)
    source, chosen = _chosen(config, limit, progress)
    evaluated: list[Evaluated] = []
    lines: list[list[ItemRecord]] = []
    for name, checkpoint in zip(NAMES, pair, strict=True):
        model = open_one((checkpoint, *pair), config.model, progress.note)
        found, records = _evaluate(model, checkpoint, chosen, config, progress, name=name)
        evaluated.append(found)
        lines.append(records)
        del model
        gc.collect()
    first, second = evaluated
    changes = task_changes(*map(_by_task, lines), seed=config.data.seed)
    results = replace(_results(config, source, limit, first), other=second, changes=changes)
    return results, [*lines[0], *lines[1]]


def _by_task(records: Sequence[ItemRecord]) -> dict[str, list[ItemRecord]]:
    tasks: dict[str, list[ItemRecord]] = {}
    for record in records:
        tasks.setdefault(record.task, []).append(record)
    return tasks


def _chosen(config: EvaluateConfig, limit: int | None, progress: Progress) -> tuple[str, "Chosen"]:
    """What the source says of itself, and per task what is scored."""
    source = source_of(config.data, progress.note)
    pools = [source.pool(name, subjects) for name, subjects in source.resolve(config.data.tasks)]
    return source.description, [
        (pool.name, [subject_items(pool, subject, config.data, limit) for subject in pool.subjects]) for pool in pools
    ]


def _evaluate(
    model: LanguageModel,
    adapter: Path | None,
    chosen: "Chosen",
    config: EvaluateConfig,
    progress: Progress,
    *,
    name: str,
) -> tuple[Evaluated, list[ItemRecord]]:
    """The live adapter of `model` (that of `adapter`; None: the bare backbone), and its items as those of checkpoint `name`."""
    trained = None if adapter is None else trained_items(adapter)
    for line in unchecked(trained.run) if trained else ():
        progress.note(line)
    tasks: list[TaskEvaluation] = []
    records: list[ItemRecord] = []
    with model.bare() if adapter is None else merged(model):
        for task, parts in chosen:
            subjects = []
            for part in parts:
                subject, lines = _score_subject(model, part, trained, config, progress, checkpoint=name)
                subjects.append(subject)
                records += lines
            tasks.append(_task_evaluation(task, subjects, _measure(parts)))
    description = from_plain(ModelDescription, model.description())
    found = Evaluated(
        adapter=None if adapter is None else str(adapter),
        model=description if adapter is not None else replace(description, adapter_parameters=0),
        tasks=tuple(tasks),
        run=None if trained is None else str(trained.run),
        warnings=(*_warnings(adapter, trained, tasks), *model.fallbacks),
    )
    return found, records


def _results(config: EvaluateConfig, source: str, limit: int | None, found: Evaluated) -> EvaluationResults:
    return EvaluationResults(
        schema_version=provenance.SCHEMA_VERSION,
        config=config,
        versions=provenance.versions(found.model.quantization),
        environment=provenance.environment(),
        source=source,
        limit=limit,
        **vars(found),
    )


@dataclass(frozen=True)
class SubjectItems:
    """What is scored of a subject of a task, and the worked examples before each question."""

    task: str
    subject: str
    items: tuple[AnyItem, ...]
    shots: tuple[AnyItem, ...]


Chosen = list[tuple[str, list[SubjectItems]]]


def subject_items(pool: Pool, subject: str, data: DataConfig, limit: int | None) -> SubjectItems:
    """The rows of a subject's test split (all, where its rows name no split); UserError where the source has too few shots."""
    rows = [item for item in pool.rows if item.subject == subject]
    held_out = [item for item in pool.held_out if item.subject == subject]
    test = held_out or [item for item in rows if item.id.split("/")[1] == "test"] or rows
    if not test:
        raise UserError(f"{subject} of task {pool.name} must have rows to score, it has none; leave the task out")
    shots = pool.shots.get(subject, ())[: data.few_shot]
    if len(shots) < data.few_shot:
        raise UserError(
            f"data.few_shot={data.few_shot} needs as many few-shot rows of {subject}, this source has {len(shots)} (rows that "
            f"are scored cannot be examples); use data.source=local with MMLU's own folder, or lower data.few_shot"
        )
    return SubjectItems(pool.name, subject, tuple(test[:limit]), shots)


def _score_subject(
    model: LanguageModel,
    part: SubjectItems,
    trained: TrainedItems | None,
    config: EvaluateConfig,
    progress: Progress,
    *,
    checkpoint: str,
) -> tuple[SubjectEvaluation, list[ItemRecord]]:
    shots = {part.subject: part.shots}
    start = time.perf_counter()
    encoded = encode(model.tokenizer, part.items, shots, config.data.max_tokens, config.data.weighting)
    with progress.bar(part.subject, passes([encoded])) as advance:
        (scored,) = score_tasks(model, [encoded], config.evaluation.batch_size, lambda n: advance(n, ""))
    records = item_records(checkpoint, part.task, "test", encoded, scored, decode=model.decode)
    known = np.array([trained is not None and item in trained for item in part.items])
    evaluation = SubjectEvaluation(
        name=part.subject,
        n=len(encoded),
        shots=tuple(item.id for item in part.shots),
        shortened=sum(item.truncated or item.shots_dropped > 0 for item in encoded),
        accuracy=proportion(scored.correct),
        loss=estimate_mean(scored.weighted_losses, seed=config.data.seed),
        letter_mass=float(scored.letter_mass.mean()),
        seconds=time.perf_counter() - start,
        trained=proportion(scored.correct[known]) if known.any() else None,
        held_out=proportion(scored.correct[~known]) if known.any() and not known.all() else None,
        completions=True if all(item.places for item in encoded) else None,
        rouge_l=_mean_rouge(records),
    )
    return evaluation, [
        replace(record, split="train") if seen else record for record, seen in zip(records, known, strict=True)
    ]


def _mean_rouge(records: Sequence[ItemRecord]) -> float | None:
    found = [record.rouge_l for record in records if record.rouge_l is not None]
    return sum(found) / len(found) if found else None


def _measure(parts: Sequence[SubjectItems]) -> str | None:
    """What the accuracy of a task of completions is; None for questions."""
    items = (item for part in parts for item in part.items)
    return next((item.scoring.title for item in items if isinstance(item, Completion)), None)


def _task_evaluation(name: str, subjects: Sequence[SubjectEvaluation], measure: str | None) -> TaskEvaluation:
    """Accuracies over all items of a task, over its trained items and over the others."""
    trained = [subject.trained for subject in subjects if subject.trained is not None]
    # of a subject without a trained row every row is held out
    others = [subject.held_out if subject.trained else subject.accuracy for subject in subjects]
    held_out = [accuracy for accuracy in others if accuracy is not None]
    return TaskEvaluation(
        name=name,
        subjects=tuple(subjects),
        accuracy=_pooled([subject.accuracy for subject in subjects]),
        trained=_pooled(trained) if trained else None,
        held_out=_pooled(held_out) if trained and held_out else None,
        measure=measure,
    )


def _pooled(accuracies: Sequence[Proportion]) -> PooledAccuracy:
    """Accuracy over all items of a group: subjects weighted by size; stderr as the harness pools it."""
    sizes = [accuracy.n for accuracy in accuracies]
    stderrs = [accuracy.stderr for accuracy in accuracies if accuracy.stderr is not None]
    return PooledAccuracy(
        value=sum(accuracy.correct for accuracy in accuracies) / sum(sizes),
        stderr=pooled_stderr(stderrs, sizes) if len(stderrs) == len(sizes) else None,
        n=sum(sizes),
    )


def _warnings(adapter: Path | None, trained: TrainedItems | None, tasks: Sequence[TaskEvaluation]) -> tuple[str, ...]:
    """What forbids to read an accuracy as one on test items."""
    if adapter is not None and trained is None:
        return (
            "it is not known what this adapter was trained on (its folder is not in that of a run): where it was trained on "
            "these items, this is no test accuracy",
        )
    return tuple(f"{task.name}: {_trained_on(task)}" for task in tasks if task.trained is not None)


def _trained_on(task: TaskEvaluation) -> str:
    found = task.trained
    count = f"{found.n if found else 0} of {task.accuracy.n} items were trained on"
    if task.held_out is None:
        return f"{count}, so this is no test"
    return f"{count}; held-out: {round(task.held_out.value * task.held_out.n)} of {task.held_out.n} right"
