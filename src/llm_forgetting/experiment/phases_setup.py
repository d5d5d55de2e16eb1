"""The first phase of an experiment: what is loaded, frozen and checked before the first step."""

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment import guards
from llm_forgetting.experiment.analysis.landscape import (
    require_space,
)
from llm_forgetting.experiment.artifacts.phase_artifacts import (
    GUARDS,
)
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.session import Session, frozen_splits
from llm_forgetting.files import from_plain
from llm_forgetting.forgetting.scores import SPLITS
from llm_forgetting.models.hessian.products import supports_tangent_pass
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.results import (
    GuardReport,
    ModelDescription,
    Protocol,
    RunSetup,
    TaskSetup,
    TokenCounts,
)
from llm_forgetting.tasks.task import Task
from llm_forgetting.training.arguments import accelerate_settings
from llm_forgetting.training.method import Methods

_SPLIT = "no item is both trained on and held out"
_SPLIT_MMLU = "train items are cut from the task's own rows (MMLU has no training split per subject)"
WEIGHTING = {
    "token": "the loss of completions is the mean over all their tokens",
    "item": "the loss of completions is the mean over items of each item's mean over its tokens",
}


def set_up(session: Session, folder: RunFolder) -> RunSetup:
    """Phase 1: load everything, freeze and hash the splits, run the sanity checks (kept apart: studies share them)."""
    guards.check_names(session.config)
    for name, value in accelerate_settings().items():
        session.progress.note(f"{name}={value} of the environment is set aside: model.dtype says the precision")
    tasks, model, encoded, _ = session.tasks, session.model, session.encoded, session.passages
    probes = [item for task in session.encoded_probes for item in task.test]
    require_space(model, session.config.landscape, session.progress.note)
    Methods.of(session.config).require(model)
    items = [item for task in encoded for split in SPLITS for item in task.split(split)]
    report = folder.once(GUARDS, lambda: _guarded(session, items))
    return RunSetup(
        config_fingerprint=session.config.fingerprint,
        task_names=tuple(task.name for task in tasks),
        source=session.source.description,
        tasks=tuple(map(_task_setup, tasks, encoded, session.landscape_items())),
        model=from_plain(ModelDescription, model.description()),
        initial_adapter_sha256=model.adapter_sha256(),
        guards=report,
        protocol=Protocol(
            adapter=_carried(session.config),
            optimizer="a fresh optimiser and learning-rate schedule for every task",
            train_split=_SPLIT_MMLU if session.config.data.source == "embedded" else _SPLIT,
            landscape_items=f"{session.config.landscape.items} items, the same at every point and checkpoint",
            runs=1,
            weighting=WEIGHTING[session.config.data.weighting] if any(item.places for item in items) else None,
        ),
        warnings=(*_setup_warnings(report.letter_mass, items, probes), *_fallbacks(session)),
    )


def _carried(config: ExperimentConfig) -> str:
    """What goes from one task to the next."""
    if any(method.adapter_per_task for method in Methods.of(config).methods):
        return "an adapter of its own for every task"
    return "one adapter, carried from task to task" if config.lora else "all weights, carried from task to task"


def _guarded(session: Session, items: list[EncodedItem]) -> GuardReport:
    total = guards.PASSES * min(guards.GUARD_ITEMS, len(items))
    with session.progress.bar("checking the model", total) as advance:
        return guards.check(session.model, items, lambda n: advance(n, ""))


def _task_setup(task: Task, encoded: EncodedTask, landscape_items: list[EncodedItem]) -> TaskSetup:
    items = [item for split in SPLITS for item in encoded.split(split)]
    return TaskSetup(
        name=task.name,
        subjects=tuple(task.subjects),
        duplicates_removed=task.duplicates_removed,
        shots={subject: tuple(item.id for item in shots) for subject, shots in task.shots.items()},
        options=task.options,
        prompt=task.format,
        splits=frozen_splits(task),
        truncated_questions=sum(item.truncated for item in items),
        shots_dropped=sum(item.shots_dropped for item in items),
        tokens=TokenCounts(*(sum(len(item.input_ids) for item in encoded.split(split)) for split in SPLITS)),
        landscape_items=tuple(item.item.id for item in landscape_items),
        score=task.scoring,
    )


def _setup_warnings(letter_mass: float, items: list[EncodedItem], probes: list[EncodedItem]) -> list[str]:
    warnings = []
    completions = any(item.places for item in items)
    if letter_mass < guards.LETTER_MASS_WARNING and not completions:
        warnings.append(
            f"before training only {100 * letter_mass:.0f}% of the probability is on the option letters, so part of what is "
            "learnt is the answer format"
        )
    shortened = sum(item.truncated for item in items)
    dropped = sum(item.shots_dropped for item in items)
    if shortened or dropped:
        what = "items" if completions else "questions"
        warnings.append(
            f"{shortened} of {len(items)} {what} were shortened and {dropped} shots dropped to fit data.max_tokens"
        )
    if cut := sum(item.truncated or item.shots_dropped > 0 for item in probes):
        warnings.append(f"{cut} of {len(probes)} items of probes were shortened or lost shots to fit data.max_tokens")
    return warnings


def _fallbacks(session: Session) -> list[str]:
    """What the backbone cannot be computed by, among what this run asks for."""
    curvature = session.config.curvature
    if (curvature.forecast or curvature.spectrum) and curvature.products == "exact":
        supports_tangent_pass(session.model)
    return session.model.fallbacks
