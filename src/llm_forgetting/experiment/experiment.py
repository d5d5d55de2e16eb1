"""The experiment: fine-tune on each task in turn, measure everything after each, say what was forgotten."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting.config.sections import ExperimentConfig, to_dict
from llm_forgetting.errors import UserError
from llm_forgetting.experiment import guards
from llm_forgetting.experiment.analysis.forecast import with_weights
from llm_forgetting.experiment.artifacts import provenance as results
from llm_forgetting.experiment.artifacts.logs import log_file
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.artifacts.trackers import track
from llm_forgetting.experiment.phases import (
    analyse,
    differentiate,
    evaluate,
    foresee,
    recover,
    scan_paths,
    set_up,
    train,
)
from llm_forgetting.experiment.session import Session, checkpoint_name
from llm_forgetting.files import from_plain, to_plain
from llm_forgetting.forgetting.records import Line
from llm_forgetting.forgetting.summary import summarise
from llm_forgetting.landscape.comparison import compare_landscapes
from llm_forgetting.progress import Progress, Silent
from llm_forgetting.report.figures.run import draw_landscapes
from llm_forgetting.report.html.files import write_run_report
from llm_forgetting.report.model_card import write_cards
from llm_forgetting.report.tables.markdown import results_markdown

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
    phases = _Phases(folder, progress, total=3 * len(config.data.tasks) + 4 + bool(config.evaluation.recovery_items))

    setup = phases.run(
        "setup", "set-up: model, tokenizer, tasks, guards, and the base model's scores", lambda: set_up(session, folder)
    )
    if setup["config_fingerprint"] != config.fingerprint:
        raise UserError(
            f"{_configured_by(config, folder)} was changed after the run was started, and phases of two configurations do "
            "not mix; undo the change, or start a new run with --config and that file"
        )
    session.frozen = setup["tasks"]
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
        if config.curvature.spectrum and (k == 1 or config.curvature.checkpoints == "all"):
            spectra[checkpoint_name(k)] = folder.once(f"curvature_after_task{k}", _bind(differentiate, session, k))
    if config.evaluation.recovery_items:
        few = f"what {config.evaluation.recovery_items} items of each earlier task bring back of it"
        records.append(phases.run("recovery", few, lambda: recover(session)))
    items = [record for evaluation in records for record in evaluation]
    measured = phases.run(
        "forgetting",
        "forgetting, with its uncertainty",
        lambda: to_plain(summarise(from_plain(list[Line], items), setup["task_names"], seed=config.training.seed)),
    )
    between = phases.run(
        "between_checkpoints", "compare the landscapes, and look between the checkpoints", lambda: scan_paths(session)
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
        **{key: measured[key] for key in ("forgetting", "spurious", "text")},
        "landscapes": {name: results.without_raw_logits(landscape) for name, landscape in landscapes},
        "landscape_comparison": compared,
        **results.without_raw_logits(between),
        "curvature": spectra,
        "forecasts": with_weights(foreseen, spectra),
    }
    content["warnings"] = setup["warnings"] + _late_warnings(content)
    content["figures"] = draw_landscapes(content, folder.path, dpi=config.output.dpi) if config.output.figures else []
    content["timings"] = folder.timings()
    folder.write("items.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in items))
    folder.write("results.md", results_markdown(content))
    saved = folder.save_results(content)
    _extra("model cards", lambda: write_cards(saved, folder.path), progress)
    if config.output.figures:
        _extra("report.html", lambda: write_run_report(saved, items, folder.path), progress)
    if trackers := config.output.trackers:
        tell = _bind(track, saved, trackers, folder.path)
        _extra(f"what {', '.join(trackers)} keeps", lambda: folder.once("tracked", tell), progress)
    return saved


def run_in(folder: RunFolder, config: ExperimentConfig, progress: Progress) -> Result:
    """`run_experiment`, holding the folder for this process, with config.yaml and run.log in it."""
    with folder.locked(), log_file(folder.path / "run.log"):
        if not (folder.path / "config.yaml").exists():
            save_config(config, folder)
        return run_experiment(config, folder, progress)


def _extra(what: str, write: Callable[[], Any], progress: Progress) -> None:
    """What is written after results.json, of it; no drawing and no server may lose a run."""
    try:
        write()
    except Exception as error:
        log.exception("%s could not be written", what)
        progress.warn(f"{what} could not be written ({error!r}); all numbers are in results.json and results.md")


def _configured_by(config: ExperimentConfig, folder: RunFolder) -> str:
    """The files that a run's configuration is written in."""
    own = str(folder.path / "config.yaml")
    return own if config.data.definitions is None else f"{own} or {config.data.definitions}"


def save_config(config: ExperimentConfig, folder: RunFolder) -> None:
    """Write config.yaml, from which `--resume` reads the run's configuration."""
    folder.write("config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


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
