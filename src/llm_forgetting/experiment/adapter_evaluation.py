"""Accuracy of a backbone or of anyone's saved adapter on whole test splits, as lm-evaluation-harness measures it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_forgetting.config.sections import DataConfig, EvaluateConfig, LoraConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts import provenance
from llm_forgetting.experiment.artifacts.item_records import item_records
from llm_forgetting.experiment.tasks import source_of
from llm_forgetting.files import from_plain
from llm_forgetting.forgetting.intervals import estimate_mean, pooled_stderr, proportion
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.batches import EncodedItem, encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import merged, score
from llm_forgetting.progress import Progress
from llm_forgetting.results import (
    EvaluationResults,
    ModelDescription,
    PooledAccuracy,
    SubjectEvaluation,
    TaskEvaluation,
)
from llm_forgetting.tasks.sources import Source
from llm_forgetting.tasks.task import Item

EVALUATED = "evaluated"


def evaluate_adapter(
    config: EvaluateConfig, adapter: Path | None, limit: int | None, progress: Progress
) -> tuple[EvaluationResults, list[ItemRecord]]:
    """What evaluation.json holds, and the lines of items.jsonl.

    Every row of a subject's test split is scored, in file order, without anything taken out (of sources without splits, every
    row); `limit` keeps the first rows of each subject. Few-shot examples are the first of the source's own few-shot rows.
    `adapter` None is the bare backbone. UserError for what the user can mend.
    """
    source = source_of(config.data, progress.note)
    chosen = [
        (name, [subject_items(source, subject, config.data, limit) for subject in subjects])
        for name, subjects in source.resolve(config.data.tasks)
    ]
    model = (
        LanguageModel.load(config.model, LoraConfig(rank=1), seed=0, notify=progress.note)
        if adapter is None
        else LanguageModel.open_adapter(adapter, config.model, progress.note)
    )
    tasks: list[TaskEvaluation] = []
    records: list[ItemRecord] = []
    with model.without_adapter() if adapter is None else merged(model):
        for name, parts in chosen:
            subjects = []
            for part in parts:
                subject, scored, items = _score_subject(model, part, config, progress)
                subjects.append(subject)
                records += item_records(EVALUATED, name, "test", items, scored)
            tasks.append(TaskEvaluation(name, tuple(subjects), _pooled(subjects)))
    description = from_plain(ModelDescription, model.description())
    results = EvaluationResults(
        schema_version=provenance.SCHEMA_VERSION,
        config=config,
        versions=provenance.versions(),
        environment=provenance.environment(),
        source=source.description,
        model=description if adapter is not None else replace(description, adapter_parameters=0),
        adapter=None if adapter is None else str(adapter),
        limit=limit,
        tasks=tuple(tasks),
    )
    return results, records


@dataclass(frozen=True)
class SubjectItems:
    """What is scored of a subject, and the worked examples before each question."""

    subject: str
    items: tuple[Item, ...]
    shots: tuple[Item, ...]


def subject_items(source: Source, subject: str, data: DataConfig, limit: int | None) -> SubjectItems:
    """The rows of a subject's test split (all, where its rows name no split); UserError where the source has too few shots."""
    pool = source.pool(subject, (subject,))
    test = [item for item in pool.rows if item.id.split("/")[1] == "test"] or list(pool.rows)
    shots = pool.shots.get(subject, ())[: data.few_shot]
    if len(shots) < data.few_shot:
        raise UserError(
            f"data.few_shot={data.few_shot} needs as many few-shot rows of {subject}, this source has {len(shots)} (rows that "
            f"are scored cannot be examples); use data.source=local with MMLU's own folder, or lower data.few_shot"
        )
    return SubjectItems(subject, tuple(test[:limit]), shots)


def _score_subject(
    model: LanguageModel, part: SubjectItems, config: EvaluateConfig, progress: Progress
) -> tuple[SubjectEvaluation, AnswerStatistics, Sequence[EncodedItem]]:
    shots = {part.subject: part.shots}
    start = time.perf_counter()
    encoded = encode(model.tokenizer, part.items, shots, config.data.max_tokens)
    with progress.bar(part.subject, len(encoded)) as advance:
        scored = score(model, encoded, config.evaluation.batch_size, lambda n: advance(n, ""))
    evaluation = SubjectEvaluation(
        name=part.subject,
        n=len(encoded),
        shots=tuple(item.id for item in part.shots),
        shortened=sum(item.truncated or item.shots_dropped > 0 for item in encoded),
        accuracy=proportion(scored.correct),
        loss=estimate_mean(scored.losses, seed=config.data.seed),
        letter_mass=float(scored.letter_mass.mean()),
        seconds=time.perf_counter() - start,
    )
    return evaluation, scored, encoded


def _pooled(subjects: Sequence[SubjectEvaluation]) -> PooledAccuracy:
    """Accuracy over all items of a group: subjects weighted by size; stderr as the harness pools it."""
    sizes = [subject.n for subject in subjects]
    stderrs = [subject.accuracy.stderr for subject in subjects if subject.accuracy.stderr is not None]
    return PooledAccuracy(
        value=sum(subject.accuracy.correct for subject in subjects) / sum(sizes),
        stderr=pooled_stderr(stderrs, sizes) if len(stderrs) == len(sizes) else None,
        n=sum(sizes),
    )
