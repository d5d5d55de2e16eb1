"""Phases of an experiment, one function each: from a session to the record that the phase's artifact holds."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from llm_forgetting.config.paths import to_dict
from llm_forgetting.curvature.records import SpectrumRecord
from llm_forgetting.experiment.analysis.landscape import analyse_landscape, evaluations, space_of, suited
from llm_forgetting.experiment.analysis.spectrum import analyse_curvature, curvature_evaluations
from llm_forgetting.experiment.artifacts.item_records import (
    item_records,
    passage_records,
    recovery_items,
    with_rotations,
)
from llm_forgetting.experiment.artifacts.phase_artifacts import (
    Lines,
    checkpoint_name,
    curvature_phase,
    landscape_phase,
    recovery_phase,
)
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.artifacts.trackers import training_tracked
from llm_forgetting.experiment.session import Session
from llm_forgetting.files.manifest import recorded_folder
from llm_forgetting.forgetting.quantised import quantised_name
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.forgetting.scores import SPLITS
from llm_forgetting.forgetting.summary import FRESH, RECOVERED
from llm_forgetting.landscape.lowrank import write_update
from llm_forgetting.landscape.records import CheckpointLandscape
from llm_forgetting.models.adapter.requantised import requantised
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.scoring import merged, passes, score_tasks
from llm_forgetting.models.language.text_loss import passage_item, text_losses
from llm_forgetting.results import TrainingRecord
from llm_forgetting.training.during import DuringScores, drawn, items_during
from llm_forgetting.training.fine_tuning import fine_tune, optimizer_steps
from llm_forgetting.training.method import Methods, Start

METHODS = "methods"
"""Where a checkpoint's folder holds what methods keep for the next task."""


def train(session: Session, k: int) -> TrainingRecord:
    """Fine-tune on task k from the checkpoint after task k - 1, and save the checkpoint."""
    model, task = session.at(k - 1), session.encoded[k - 1]
    methods = Methods.of(session.config, k)
    session.mark_checkpoint(None)  # a method may move the model before it is trained
    scratch = session.folder / "phases" / f"trainer_task{k}"
    during = _during(session, k, scratch / "during")
    methods.begin(_start(session, k))
    config = methods.settings(session.config.training)
    items = [*task.train, *methods.items()]
    steps = optimizer_steps(len(items), config)
    bar = session.progress.bar(f"fine-tuning on {task.name}", steps)
    with training_tracked(session.folder, f"task{k}"), bar as advance:
        history = fine_tune(
            model,
            items,
            config,
            stream=f"task{k}",
            scratch=scratch,
            methods=methods,
            trackers=session.config.output.trackers,
            advance=advance,
            record=_recorder(session, k) if session.config.landscape.trajectory else lambda epoch: None,
            note=session.progress.note,
            callbacks=() if during is None else (during.follow(steps),),
        )
    methods.end(model)
    scores = None if during is None else during.record(moved=methods.moves)
    session.mark_checkpoint(k if session.config.lora is not None else None)  # all weights are read from what is saved
    with recorded_folder(session.folder, session.checkpoint_folder(k).name) as checkpoint:
        model.save(checkpoint)
        methods.save(checkpoint / METHODS)
        (checkpoint / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the finished run writes a card
        (checkpoint / "experiment_config.yaml").write_text(yaml.safe_dump(to_dict(session.config), sort_keys=False))
    shutil.rmtree(scratch, ignore_errors=True)
    return TrainingRecord(
        task=task.name,
        optimizer_steps=steps,
        interventions=methods.record(model),
        adapter_sha256=model.adapter_sha256(),
        log=history,
        during=scores,
    )


def _during(session: Session, k: int, folder: Path) -> DuringScores | None:
    """What scores the training on task k, its first point taken; the items are the same whatever methods do."""
    settings = session.config.evaluation
    if not settings.during:
        return None
    tasks, probes = session.encoded[:k], session.encoded_probes
    own, training = len(tasks[-1].train), session.config.training
    count = items_during(settings, k + len(probes), optimizer_steps(own, training), own * training.num_epochs)
    seed, split = session.config.data.seed, settings.during_split
    chosen = {task.name: drawn(task.split(split), task.name, count, seed) for task in tasks}
    others = {probe.name: drawn(probe.test, probe.name, count, seed) for probe in probes}
    during = DuringScores(session.model, chosen, settings, folder, probes=others)
    during.start()
    return during


def _start(session: Session, k: int) -> Start:
    before = session.checkpoint_folder(k - 1) / METHODS
    return Start(
        model=session.model,
        task=session.encoded[k - 1],
        number=k,
        earlier=tuple(session.encoded[: k - 1]),
        previous=session.encoded[k - 2] if k > 1 else None,
        last=k == len(session.encoded),
        seed=session.config.training.seed,
        text=lambda: [passage_item(passage) for passage in session.passages],
        kept=before if before.is_dir() else None,
    )


def _recorder(session: Session, k: int) -> Callable[[int], None]:
    """Keeps the adapter of every epoch until it is projected onto the checkpoint plane."""

    def record(epoch: int) -> None:
        with recorded_folder(session.folder, f"phases/{session.trajectory_folder(k).name}/epoch_{epoch:03d}") as folder:
            write_update(folder / "update.safetensors", session.model.adapter_factors())

    return record


def evaluate(session: Session, k: int) -> Lines:
    """Score the checkpoint after task k on every task and split, and on control text: one record per item and passage."""
    model, encoded, settings = session.at(k), session.encoded, session.config.evaluation
    name, last = checkpoint_name(k), len(encoded)
    cells = [(task, split, task.split(split)) for task in encoded for split in SPLITS]
    rotated = [j for j in range(1, last) if k in (j, last)] if settings.rotations else []
    rotations = {j: session.rotated(j, "train") for j in rotated if session.tasks[j - 1].questions}
    groups = [items for _, _, items in cells] + [items for lists in rotations.values() for items in lists]
    total = passes(groups) + len(session.passages)
    with session.progress.bar(f"scoring {name}", total) as advance, merged(model):
        scores = score_tasks(model, groups, settings.batch_size, lambda n: advance(n, ""))
        losses = text_losses(model, session.passages, lambda n: advance(n, ""))
    records = [
        record
        for (task, split, items), scored in zip(cells, scores, strict=False)
        for record in item_records(name, task.name, split, items, scored, decode=model.decode)
    ]
    rest = iter(scores[len(cells) :])
    for j, lists in rotations.items():
        records = with_rotations(records, encoded[j - 1].name, "train", lists, [next(rest) for _ in lists])
    return (*records, *passage_records(name, session.passages, losses))


def evaluate_quantised(session: Session, k: int) -> Lines:
    """Score the checkpoint after task k on every task and split with its weights quantised, in every kind that is asked for."""
    model, settings, name = session.at(k), session.config.evaluation, checkpoint_name(k)
    cells = [(task, split, task.split(split)) for task in session.encoded for split in SPLITS]
    total = len(settings.quantised) * passes(items for _, _, items in cells)
    records: list[ItemRecord] = []
    with session.progress.bar(f"scoring {name}, quantised", total) as advance:
        for kind in settings.quantised:
            with requantised(model, kind):
                groups = [items for _, _, items in cells]
                scores = score_tasks(model, groups, settings.batch_size, lambda n: advance(n, ""))
            for (task, split, items), scored in zip(cells, scores, strict=True):
                records += item_records(
                    quantised_name(name, kind), task.name, split, items, scored, decode=session.model.decode
                )
    return tuple(records)


def relearning_probe(session: Session) -> Lines:
    """`relearn_task` for every task but the last; those that were probed apart are read back."""
    folder, tasks = RunFolder(session.folder), range(1, len(session.config.data.tasks))
    parts = [folder.read(recovery_phase(j)) or relearn_task(session, j) for j in tasks]
    return tuple(line for part in parts for line in part)


def relearn_task(session: Session, j: int) -> Lines:
    """A few of the trained items of task j learnt again at the last checkpoint, and its others scored."""
    settings, last, task = session.config.evaluation, len(session.encoded), session.encoded[j - 1]
    starts = {RECOVERED: last, **({FRESH: 0} if settings.recovery_control else {})}
    records: list[ItemRecord] = []
    chosen = recovery_items(task, settings.recovery_items, session.config.data.seed)
    others = [item for item in task.train if item not in chosen]
    for kind, start in starts.items():
        name = f"{kind}_task{j}"
        _relearn(session, name, start, chosen, task.name)
        (scored,) = score_tasks(session.model, [others], settings.batch_size)
        records += item_records(name, task.name, "train", others, scored, decode=session.model.decode)
    return tuple(records)


def _relearn(session: Session, name: str, start: int, chosen: list[EncodedItem], task: str) -> None:
    """Leave the model at the checkpoint after task number `start`, fine-tuned on `chosen`."""
    model = session.at(start)
    session.mark_checkpoint(None)
    config = dataclasses.replace(session.config.training, num_epochs=session.config.evaluation.recovery_epochs)
    scratch = session.folder / "phases" / f"trainer_{name}"
    steps = optimizer_steps(len(chosen), config)
    with session.progress.bar(f"{len(chosen)} items of {task} again, from {checkpoint_name(start)}", steps) as advance:
        note = session.progress.note
        fine_tune(model, chosen, config, stream=name, scratch=scratch, advance=advance, note=note)
    shutil.rmtree(scratch, ignore_errors=True)


def scan_landscape(session: Session, k: int, reference_norm: float | None) -> CheckpointLandscape:
    """Loss surfaces of every task around the checkpoint after task k, distances in units of `reference_norm`."""
    model, settings, name = session.at(k), session.config.landscape, checkpoint_name(k)
    named = session.named_landscape_items(settings.tasks_around(k, len(session.config.data.tasks)))
    with session.progress.bar(f"landscape of {name}", evaluations(settings)) as advance:
        journal = session.journal(landscape_phase(name).name)
        return analyse_landscape(
            model, named, settings, reference_norm=reference_norm, advance=advance, journal=journal
        )


def reference_norm(session: Session) -> float:
    """|P| of the first checkpoint, the unit of distances at all of them."""
    model = session.at(1)
    return space_of(model, suited(model, session.config.landscape)).norm


def estimate_spectrum(session: Session, k: int) -> SpectrumRecord:
    """Spectrum and sharpness of the task just learnt at the checkpoint after task k."""
    settings, items = session.config.curvature, session.landscape_items()
    with session.progress.bar(f"curvature of {checkpoint_name(k)}", curvature_evaluations(settings)) as advance:
        return analyse_curvature(
            session.at(k),
            items[k - 1],
            settings,
            batch_size=session.config.landscape.batch_size,
            advance=advance,
            journal=session.journal(curvature_phase(checkpoint_name(k)).name),
            note=session.progress.note,
        )
