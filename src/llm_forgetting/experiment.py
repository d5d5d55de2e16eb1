"""The experiment: fine-tune on each task in turn, measure everything after each, say what was forgotten."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting import guards, results
from llm_forgetting.artifacts import RunFolder, whole_folder
from llm_forgetting.between_checkpoints import analyse_between, no_update
from llm_forgetting.comparison import compare_landscapes
from llm_forgetting.config import ExperimentConfig, to_dict
from llm_forgetting.curvature_analysis import (
    analyse_curvature,
    analyse_forecast,
    curvature_evaluations,
    forecast_evaluations,
    with_weights,
)
from llm_forgetting.errors import UserError
from llm_forgetting.evaluation import score_tasks
from llm_forgetting.forgetting import forgetting
from llm_forgetting.interventions import intervene
from llm_forgetting.landscape.lowrank import read_update, write_update
from llm_forgetting.landscape_analysis import analyse_landscape, evaluations
from llm_forgetting.progress import Progress, Silent
from llm_forgetting.report.figures import draw_landscapes
from llm_forgetting.report.markdown import results_markdown
from llm_forgetting.session import INITIAL, Session, checkpoint_name, choose_landscape_items
from llm_forgetting.training import fine_tune, optimizer_steps, require_known_names
from llm_forgetting.verdict import verdict

Result = dict[str, Any]
log = logging.getLogger(__name__)


def run_experiment(config: ExperimentConfig, folder: RunFolder, progress: Progress | None = None) -> Result:
    """All phases, in the order of the documents: each is computed once, and one whose artifact exists is read back.

    1 set-up and the base model's scores; then for every task: fine-tune, evaluate, landscape; then forgetting,
    comparison, and everything saved. Returns what results.json holds. Raises UserError for what the user can mend;
    whatever was computed before that stays in `folder`, and a later call with the same folder goes on from it.
    """
    progress = progress or Silent()
    session = Session(config, folder.path, progress)
    phases = _Phases(folder, progress, total=3 * len(config.data.tasks) + 4)

    setup = phases.run(
        "setup", "set-up: model, tokenizer, tasks, guards, and the base model's scores", lambda: set_up(session)
    )
    if setup["config_fingerprint"] != config.fingerprint:
        raise UserError(
            f"{folder.path / 'config.yaml'} was changed after the run was started, and phases of two configurations do "
            "not mix; undo the change, or start a new run with --config and that file"
        )
    for warning in setup["warnings"]:
        progress.warn(warning)
    records = [folder.once("evaluate_initial", lambda: evaluate(session, 0))]
    trained: list[Result] = []
    landscapes: list[tuple[str, Result]] = []
    spectra: dict[str, Result] = {}
    for k, name in enumerate(setup["task_names"], start=1):
        trained.append(phases.run(f"train_task{k}", f"fine-tune on task {k}, {name}", _bind(train, session, k)))
        records.append(phases.run(f"evaluate_after_task{k}", "evaluate on every task", _bind(evaluate, session, k)))
        reference = landscapes[0][1]["reference_norm"] if landscapes else None
        landscape = phases.run(
            f"landscape_after_task{k}", f"loss landscape after task {k}", _bind(analyse, session, k, reference)
        )
        landscapes.append((checkpoint_name(k), landscape))
        if config.curvature.spectrum:
            spectra[checkpoint_name(k)] = folder.once(f"curvature_after_task{k}", _bind(differentiate, session, k))
    items = [record for evaluation in records for record in evaluation]
    measured = phases.run("forgetting", "forgetting, with its uncertainty", lambda: measure(items, setup, config))
    between = phases.run(
        "between_checkpoints", "compare the landscapes, and look between the checkpoints", lambda: look_between(session)
    )
    for k in range(1, len(config.data.tasks) + 1):
        shutil.rmtree(session.trajectory_folder(k), ignore_errors=True)
    foreseen = folder.once("forecast", lambda: foresee(session, between)) if config.curvature.forecast else []
    compared = folder.once("comparison", lambda: compare_landscapes(landscapes))

    phases.announce("save results and figures", kept=False)
    content = {
        "schema_version": results.SCHEMA_VERSION,
        "answer": measured["answer"],
        "config": to_dict(config),
        "versions": results.versions(),
        "environment": results.environment(),
        **setup,
        "training": trained,
        "forgetting": {split: measured[split] for split in results.SPLITS},
        "landscapes": {name: results.without_raw_logits(landscape) for name, landscape in landscapes},
        "landscape_comparison": compared,
        **results.without_raw_logits(between),
        "curvature": spectra,
        "forecasts": with_weights(foreseen, spectra),
    }
    content["warnings"] = setup["warnings"] + _late_warnings(content)
    content["figures"] = draw_landscapes(content, folder.path, dpi=config.output.dpi)
    content["timings"] = folder.timings()
    folder.write("items.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in items))
    folder.write("results.md", results_markdown(content))
    return folder.save_results(content)


def save_config(config: ExperimentConfig, folder: RunFolder) -> None:
    """Write config.yaml, from which `--resume` reads the run's configuration."""
    folder.write("config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def set_up(session: Session) -> Result:
    """Phase 1: load everything, freeze and hash the splits, run the guards."""
    require_known_names(session.config.training)
    tasks, model, encoded = session.tasks, session.model, session.encoded
    every = [item for task in encoded for split in results.SPLITS for item in task.split(split)]
    report = guards.check(model, every)
    warnings = []
    if report.letter_mass < guards.LETTER_MASS_WARNING:
        warnings.append(
            f"the base model gives the option letters {report.letter_mass:.2f} of its probability (below "
            f"{guards.LETTER_MASS_WARNING}): it does not answer with a letter yet, so part of what is learnt is the format"
        )
    cut = sum(item.truncated for item in every)
    dropped = sum(item.shots_dropped for item in every)
    if cut or dropped:
        warnings.append(
            f"{cut} of {len(every)} questions were shortened and {dropped} shots dropped to fit data.max_tokens"
        )
    chosen = session.landscape_items()
    return {
        "config_fingerprint": session.config.fingerprint,
        "task_names": [task.name for task in tasks],
        "source": session.source.description,
        "tasks": [
            {
                "name": task.name,
                "subjects": list(task.subjects),
                "duplicates_removed": task.duplicates_removed,
                "shots": {subject: [item.id for item in items] for subject, items in task.shots.items()},
                "splits": {
                    split: [{"id": item.id, "sha256": item.sha256} for item in task.split(split)]
                    for split in results.SPLITS
                },
                "truncated_questions": sum(item.truncated for s in results.SPLITS for item in tokens.split(s)),
                "shots_dropped": sum(item.shots_dropped for s in results.SPLITS for item in tokens.split(s)),
                "tokens": {s: sum(len(item.input_ids) for item in tokens.split(s)) for s in results.SPLITS},
                "landscape_items": [item.item.id for item in items],
            }
            for task, tokens, items in zip(tasks, encoded, chosen, strict=True)
        ],
        "model": model.description(),
        "initial_adapter_sha256": model.adapter_sha256(),
        "guards": dataclasses.asdict(report),
        "protocol": {
            "adapter": "one adapter, carried from task to task",
            "optimizer": "a fresh optimiser and learning-rate schedule for every task",
            "train_split": "MMLU has no training split per subject, so train items are cut from the subject's own rows",
            "landscape_items": f"{session.config.landscape.items} items, the same at every point and checkpoint",
            "runs": 1,
        },
        "warnings": warnings,
    }


def train(session: Session, k: int) -> Result:
    """Fine-tune on task k from the checkpoint after task k - 1, and save the checkpoint."""
    config, model, task = session.config.training, session.at(k - 1), session.encoded[k - 1]
    interventions = intervene(session.config.interventions, model, session.encoded[: k - 1], config.seed)
    items = [*task.train, *interventions.replayed_items]
    scratch = session.folder / "phases" / f"trainer_task{k}"
    steps = optimizer_steps(len(items), config)
    with session.progress.bar(f"fine-tuning on {task.name}", steps) as advance:
        history = fine_tune(
            model,
            items,
            config,
            stream=f"task{k}",
            scratch=scratch,
            interventions=interventions,
            advance=advance,
            record=_recorder(session, k) if session.config.landscape.trajectory else lambda epoch: None,
        )
    session.trained(k)
    with whole_folder(session.checkpoint_folder(k)) as checkpoint:
        model.save(checkpoint)
        (checkpoint / "experiment_config.yaml").write_text(yaml.safe_dump(to_dict(session.config), sort_keys=False))
    shutil.rmtree(scratch, ignore_errors=True)
    return {
        "task": task.name,
        "optimizer_steps": steps,
        "interventions": interventions.record(model),
        "adapter_sha256": model.adapter_sha256(),
        "log": history,
    }


def _recorder(session: Session, k: int) -> Callable[[int], None]:
    """Keeps the adapter of every epoch until it is projected onto the checkpoint plane."""

    def record(epoch: int) -> None:
        with whole_folder(session.trajectory_folder(k) / f"epoch_{epoch:03d}") as folder:
            write_update(folder / "update.safetensors", session.model.adapter_factors())

    return record


def evaluate(session: Session, k: int) -> list[Result]:
    """Score the checkpoint after task k on every task and split: one record per item."""
    model, encoded = session.at(k), session.encoded
    cells = [(task, split, task.split(split)) for task in encoded for split in results.SPLITS]
    total = sum(len(items) for _, _, items in cells)
    with session.progress.bar(f"scoring {checkpoint_name(k)}", total) as advance:
        found = score_tasks(
            model, [c[2] for c in cells], session.config.evaluation.batch_size, lambda n: advance(n, "")
        )
    records = []
    for (task, split, items), scored in zip(cells, found, strict=True):
        predictions, correct, losses = scored.predictions, scored.correct, scored.losses
        for row, item in enumerate(items):
            records.append(
                {
                    "checkpoint": checkpoint_name(k),
                    "task": task.name,
                    "split": split,
                    "id": item.item.id,
                    "subject": item.item.subject,
                    "answer": item.item.letters[item.item.answer],
                    "predicted": item.item.letters[int(predictions[row])],
                    "correct": bool(correct[row]),
                    "loss": float(losses[row]),
                    "letter_logits": scored.letter_logits[row, : len(item.letter_ids)].tolist(),
                    "rest": float(scored.rest[row]),
                }
            )
    return records


def analyse(session: Session, k: int, reference_norm: float | None) -> Result:
    """Loss surfaces of every task around the checkpoint after task k."""
    model, named, settings = session.at(k), session.named_landscape_items(), session.config.landscape
    name = f"landscape_{checkpoint_name(k)}"
    with session.progress.bar(f"landscape of {checkpoint_name(k)}", evaluations(settings)) as advance:
        return analyse_landscape(
            model,
            named,
            settings,
            reference_norm=reference_norm,
            advance=advance,
            journal=session.journal(name),
        )


def look_between(session: Session) -> Result:
    """Paths between successive checkpoints, and the plane through the initial, the first and the last one."""
    last = len(session.config.data.tasks)
    updates = {checkpoint_name(k): session.at(k).adapter_factors() for k in range(1, last + 1)}
    folders = {
        f"task {k}, epoch {int(folder.name.removeprefix('epoch_'))}": folder
        for k in range(1, last + 1)
        for folder in sorted(session.trajectory_folder(k).glob("epoch_*"))
    }
    return analyse_between(
        session.model,
        session.named_landscape_items(),
        {INITIAL: no_update(updates[checkpoint_name(1)]), **updates},
        session.config.landscape,
        progress=session.progress,
        journal=session.journal,
        pools=[len(task.split(session.config.landscape.items)) for task in session.encoded],
        trajectory={name: partial(read_update, folder / "update.safetensors") for name, folder in folders.items()},
    )


def differentiate(session: Session, k: int) -> Result:
    """Spectrum and sharpness of the task just learnt at the checkpoint after task k."""
    settings, items = session.config.curvature, session.landscape_items()
    with session.progress.bar(f"curvature of {checkpoint_name(k)}", curvature_evaluations(settings)) as advance:
        return analyse_curvature(
            session.at(k),
            items[k - 1],
            items[k] if k < len(items) else None,
            settings,
            batch_size=session.config.landscape.batch_size,
            advance=advance,
        )


def foresee(session: Session, between: Result) -> list[Result]:
    """For every step from one trained checkpoint to the next: what its start forecasts of all tasks learnt before."""
    config, named = session.config, session.named_landscape_items()
    own = config.landscape.items
    other = "test" if own == "train" else "train"
    paths = {path["from"]: path for path in between["paths"]}
    found = []
    for k in range(1, len(config.data.tasks)):
        old = {
            task.name: {own: items, other: choose_landscape_items(task.split(other), task.name, config.landscape)}
            for task, (_, items) in list(zip(session.encoded, named, strict=True))[:k]
        }
        first, second = (session.at(n).adapter_factors() for n in (k, k + 1))
        with session.progress.bar(f"forecast from {checkpoint_name(k)}", forecast_evaluations(k)) as advance:
            foreseen = analyse_forecast(
                session.model,
                first,
                second,
                old,
                named[k][1],
                paths.get(checkpoint_name(k)),
                config.curvature,
                tau=config.landscape.tau,
                batch_size=config.landscape.batch_size,
                advance=advance,
            )
        found.append({"from": checkpoint_name(k), "to": checkpoint_name(k + 1), **foreseen})
    return found


def measure(items: list[Result], setup: Result, config: ExperimentConfig) -> Result:
    """Every variant of forgetting on both splits, and the answer in a sentence."""
    names = setup["task_names"]
    checkpoints = [checkpoint_name(k) for k in range(len(names) + 1)]
    found = {
        split: forgetting(results.score_table(items, names, split, checkpoints), seed=config.training.seed)
        for split in results.SPLITS
    }
    mass = {split: results.letter_mass_matrix(items, names, split, checkpoints) for split in results.SPLITS}
    return {
        "answer": verdict(found["train"]),
        **{
            split: {"checkpoints": checkpoints, **dataclasses.asdict(value), "letter_mass": mass[split]}
            for split, value in found.items()
        },
    }


def _late_warnings(content: Result) -> list[str]:
    """What only the measured numbers can tell."""
    found = []
    masses = content["forgetting"]["train"]["letter_mass"][1:]
    for j, (name, mass) in enumerate(zip(content["task_names"], masses, strict=True)):
        if not float(mass[j]) >= guards.LETTER_MASS_WARNING:
            found.append(
                f"after training on {name} the model gives the option letters only {float(mass[j]):.2f} of its probability on "
                f"{name}: the answer token is probably wrong, or far too little was learnt"
            )
    for name, landscape in content["landscapes"].items():
        test = landscape["gauge_self_test"]
        if not test["passed"]:
            found.append(
                f"gauge self-test of {name} failed: the same adapter in another gauge differs by "
                f"{float(test['value_relative_difference']):.1e} in value; do not compare this landscape's numbers"
            )
        for task, surface in landscape["surfaces"].items():
            if surface["metrics"]["flat"]:
                found.append(
                    f"the {task} surface of {name} is flat: the adapter learnt (nearly) nothing, which is not a wide minimum"
                )
    return found


class _Phases:
    """Numbers the phases for whoever is watching, and runs those whose artifact is missing."""

    def __init__(self, folder: RunFolder, progress: Progress, total: int) -> None:
        self._folder = folder
        self._progress = progress
        self._total = total
        self._number = 0

    def announce(self, title: str, *, kept: bool) -> None:
        self._number += 1
        self._progress.phase(self._number, self._total, title, kept=kept)
        log.info("phase %d of %d: %s%s", self._number, self._total, title, " (kept)" if kept else "")

    def run(self, name: str, title: str, compute: Callable[[], Any]) -> Any:
        self.announce(title, kept=self._folder.has(name))
        return self._folder.once(name, compute)


def _bind(phase: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: phase(*arguments)


def load_results(path: Path) -> Result:
    """results.json of a run folder."""
    content: Result = json.loads((path / "results.json").read_text(encoding="utf-8"))
    return content
