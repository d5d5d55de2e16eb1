"""The experiment: fine-tune on each task in turn, measure everything after each, say what was forgotten."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import yaml

from llm_forgetting.config.paths import to_dict
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.curvature.records import SpectrumRecord
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.logs import log_file
from llm_forgetting.experiment.artifacts.phase_artifacts import (
    BETWEEN,
    COMPARISON,
    EVALUATE_INITIAL,
    FORECAST,
    FORGETTING,
    RECOVERY,
    SETUP,
    Lines,
    Phase,
    Result,
    checkpoint_name,
    curvature_phase,
    evaluation_phase,
    landscape_phase,
    probes_phase,
    quantised_phase,
    train_phase,
)
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.cost.fit import require_fit
from llm_forgetting.experiment.jobs import Workers, compute_side_by_side
from llm_forgetting.experiment.phases import (
    estimate_spectrum,
    evaluate,
    evaluate_quantised,
    relearning_probe,
    scan_landscape,
    train,
)
from llm_forgetting.experiment.phases_between import forecast_forgetting, scan_paths
from llm_forgetting.experiment.phases_probes import are_scored, evaluate_probes
from llm_forgetting.experiment.phases_setup import set_up
from llm_forgetting.experiment.publish import assemble, publish
from llm_forgetting.experiment.session import Session
from llm_forgetting.files.manifest import require_inputs
from llm_forgetting.forgetting.summary import summarise
from llm_forgetting.landscape.comparison import compare_landscapes
from llm_forgetting.landscape.records import CheckpointLandscape
from llm_forgetting.progress import Progress, Silent
from llm_forgetting.results import Results, TrainingRecord

log = logging.getLogger(__name__)


def run_experiment(
    config: ExperimentConfig, folder: RunFolder, progress: Progress | None = None, workers: Workers | None = None
) -> Results:
    """The ten phases of the method; each is computed once, and one whose artifact exists is read back.

    `workers` compute what needs a model side by side; without them all is computed here.

    Raises UserError for what the user can mend. Whatever was computed before that stays in `folder`, and a later call with
    the same folder goes on from it.
    """
    _require_one_process()
    progress, few = progress or Silent(), config.evaluation.recovery_items
    each = 2 if config.landscape.tasks == "none" else 3  # phases of a task
    phase = PhaseRunner(folder, Silent() if workers else progress, total=each * len(config.data.tasks) + 4)
    folder.check(progress.note)
    require_inputs(folder.path, "config", {"config.yaml": config.fingerprint})
    earlier = folder.read(SETUP)
    session = Session(config, folder.path, progress, frozen_tasks=() if earlier is None else earlier.tasks)

    if earlier is None:
        require_fit(config, progress.note)
    else:
        require_same_configuration(earlier.config_fingerprint, config, folder)
    if workers:
        compute_side_by_side(config, folder, workers, progress)
    setup = phase(SETUP, set_up, session, folder)  # 1
    for warning in setup.warnings:
        progress.warn(warning)
    scores = [phase(EVALUATE_INITIAL, evaluate, session, 0), *_further_scores(phase, session, 0)]
    training: list[TrainingRecord] = []
    landscapes: dict[str, CheckpointLandscape] = {}
    spectra: dict[str, SpectrumRecord] = {}
    for k, task in enumerate(setup.task_names, start=1):
        after = checkpoint_name(k)
        training.append(phase(train_phase(k, task), train, session, k))  # 2, 5
        scores.append(phase(evaluation_phase(k), evaluate, session, k))  # 3, 6
        scores += _further_scores(phase, session, k)
        if config.landscape.tasks != "none":
            unit = next(iter(landscapes.values())).reference_norm if landscapes else None
            landscapes[after] = phase(landscape_phase(after), scan_landscape, session, k, unit)  # 4, 7
        if config.curvature.spectrum and (k == 1 or config.curvature.checkpoints == "all"):
            spectra[after] = phase(curvature_phase(after), estimate_spectrum, session, k)
    if few:  # what they bring back belongs to the phase that counts
        scores.append(phase(replace(RECOVERY, title=FORGETTING.title), relearning_probe, session))
    lines = [line for evaluation in scores for line in evaluation]
    count = partial(summarise, lines, setup.task_names, seed=config.training.seed)
    forgetting = phase(replace(FORGETTING, title="" if few else FORGETTING.title), count)  # 8
    between = phase(BETWEEN, scan_paths, session)  # 9
    _remove_trajectories(session)
    forecasts = phase(FORECAST, forecast_forgetting, session) if config.curvature.forecast else ()
    changes = phase(COMPARISON, compare_landscapes, landscapes)

    phase.announce("save results and figures", kept=False)  # 10
    results = assemble(
        config, setup, training=training, summary=forgetting, landscapes=landscapes, changes=changes, between=between,
        spectra=spectra, forecasts=forecasts, timings=folder.timings(),
    )  # fmt: skip
    return publish(results, lines, folder, progress)


def _further_scores(phase: "PhaseRunner", session: Session, k: int) -> Iterator[Lines]:
    """Scores of the checkpoint after task k with its weights quantised, and on what is never trained on, if asked for."""
    if session.config.evaluation.quantised:
        yield phase(quantised_phase(k), evaluate_quantised, session, k)
    if are_scored(session.config.data):
        yield phase(probes_phase(k), evaluate_probes, session, k)


def _require_one_process() -> None:
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(
            f"a run must be one process, WORLD_SIZE is {processes}; start it without torchrun or accelerate launch "
            f"(--workers N, or a study, keeps several GPUs busy)"
        )


class PhaseRunner:
    """Runs the phases whose artifact is missing, and announces those that have a title under a number."""

    def __init__(self, folder: RunFolder, progress: Progress, total: int) -> None:
        self._folder = folder
        self._progress = progress
        self._total = total
        self._number = 0

    def __call__(self, phase: Phase[Result], compute: Callable[..., Result], *arguments: object) -> Result:
        """The result of a phase."""
        if phase.title:
            self.announce(phase.title, kept=self._folder.has(phase))
        return self._folder.once(phase, lambda: compute(*arguments))

    def announce(self, title: str, *, kept: bool) -> None:
        """Say that the next phase begins; `kept`: it is read back."""
        self._number += 1
        self._progress.phase(self._number, self._total, title, kept=kept)
        log.info("phase %d of %d: %s%s", self._number, self._total, title, " (kept)" if kept else "")


def run_in(folder: RunFolder, config: ExperimentConfig, progress: Progress, workers: Workers | None = None) -> Results:
    """`run_experiment`, holding the folder for this process, with config.yaml and run.log in it."""
    with folder.locked(), log_file(folder.path / "run.log"):
        if not (folder.path / "config.yaml").exists():
            save_config(config, folder)
        return run_experiment(config, folder, progress, workers)


def save_config(config: ExperimentConfig, folder: RunFolder) -> None:
    """Write config.yaml, from which `--resume` reads the run's configuration."""
    folder.write("config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def require_same_configuration(fingerprint: str, config: ExperimentConfig, folder: RunFolder) -> None:
    """Raise UserError where `config` is not that of the run in `folder`, by its fingerprint."""
    if fingerprint != config.fingerprint:
        files = [str(folder.path / "config.yaml"), *filter(None, [config.data.definitions])]
        raise UserError(
            f"{' or '.join(files)} was changed after the run was started, and phases of two configurations do "
            "not mix; undo the change, or start a new run with --config and that file"
        )


def _remove_trajectories(session: Session) -> None:
    for k in range(1, len(session.config.data.tasks) + 1):
        shutil.rmtree(session.trajectory_folder(k), ignore_errors=True)
