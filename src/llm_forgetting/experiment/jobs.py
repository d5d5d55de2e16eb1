"""Phases of one run as jobs: what of it may be computed side by side, by whom, and in which order."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llm_forgetting.config.files import parse_config
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.engines.engine import Engine, Job
from llm_forgetting.engines.start import EngineChoice, visible_gpus
from llm_forgetting.errors import UserError, is_broken_device, is_out_of_memory
from llm_forgetting.experiment import phases, phases_between, phases_probes, phases_setup
from llm_forgetting.experiment.artifacts.logs import log_file, quiet_libraries
from llm_forgetting.experiment.artifacts.phase_artifacts import (
    BETWEEN,
    EVALUATE_INITIAL,
    FORECAST,
    PLANE,
    RECOVERY,
    SETUP,
    Phase,
    checkpoint_name,
    curvature_phase,
    evaluation_phase,
    forecast_phase,
    landscape_phase,
    path_phase,
    probes_phase,
    quantised_phase,
    recovery_phase,
    train_phase,
)
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.session import Session
from llm_forgetting.experiment.workers import described, share_machine
from llm_forgetting.files import decode, encode
from llm_forgetting.progress import Progress, Silent, duration

ATTEMPTS = 3
"""How often a phase is begun whose worker dies, before the run ends."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """Who computes the phases of a run; None for what this machine decides."""

    engine: EngineChoice = field(default_factory=EngineChoice)
    workers: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Step:
    """Step of a run: a phase that needs the model, the phases that must be there before, and the phase that it is part of."""

    phase: Phase[Any]
    compute: Callable[[Session], Any]
    after: tuple[Phase[Any], ...] = ()
    part_of: Phase[Any] | None = None


def steps_of(config: ExperimentConfig) -> list[Step]:
    """Every step of a run, those first that others wait for or that take long.

    Training goes from task to task. All else needs one or two checkpoints, and so not the step before it.
    """
    tasks, landscape, last = config.data.tasks, config.landscape, len(config.data.tasks)
    trained: list[Phase[Any]] = [SETUP, *(train_phase(k, task) for k, task in enumerate(tasks, start=1))]
    steps = [Step(SETUP, lambda session: phases_setup.set_up(session, RunFolder(session.folder)))]
    steps += [Step(trained[k], partial(phases.train, k=k), (trained[k - 1],)) for k in range(1, last + 1)]
    if config.evaluation.recovery_items:
        steps += [
            Step(recovery_phase(j), partial(phases.relearn_task, j=j), (trained[last],), RECOVERY)
            for j in range(1, last)
        ]
    if landscape.checkpoint_plane and last > 1:
        steps.append(Step(PLANE, phases_between.scan_checkpoint_plane, (trained[last],), BETWEEN))
    for k in range(1, last + 1):
        name, there = checkpoint_name(k), (trained[k],)
        if config.curvature.spectrum and (k == 1 or config.curvature.checkpoints == "all"):
            steps.append(Step(curvature_phase(name), partial(phases.estimate_spectrum, k=k), there))
        if landscape.tasks != "none":
            steps.append(Step(landscape_phase(name), partial(_landscape, k=k), there))
        path = path_phase(name)
        if landscape.paths and k > 1:
            steps.append(Step(path, partial(phases_between.scan_path, k=k), there, BETWEEN))
        if config.curvature.forecast and k > 1:
            both = (*there, path) if landscape.paths else there
            start = forecast_phase(checkpoint_name(k - 1))
            steps.append(Step(start, partial(phases_between.forecast_step, k=k - 1), both, FORECAST))
        steps.append(Step(evaluation_phase(k), partial(phases.evaluate, k=k), there))
    steps.append(Step(EVALUATE_INITIAL, partial(phases.evaluate, k=0), (SETUP,)))
    for k in range(last + 1) if config.evaluation.quantised else ():
        steps.append(Step(quantised_phase(k), partial(phases.evaluate_quantised, k=k), (trained[k],)))
    for k in range(last + 1) if phases_probes.are_scored(config.data) else ():
        steps.append(Step(probes_phase(k), partial(phases_probes.evaluate_probes, k=k), (trained[k],)))
    return steps


def _landscape(session: Session, k: int) -> Any:
    """The landscape in units of the first checkpoint's norm, by the adapter: the first landscape is not waited for."""
    return phases.scan_landscape(session, k, None if k == 1 else phases.reference_norm(session))


@dataclass(frozen=True)
class PhaseJob:
    """Arguments of one step in a worker: the run's folder, the phase's name, and CPU threads."""

    folder: Path
    phase: str
    threads: int


@dataclass(frozen=True)
class PhaseFailure:
    """Why a phase failed, as a worker tells it."""

    reason: str


_SESSIONS: dict[Path, Session] = {}
"""The one session that this worker keeps from job to job: its model is loaded once."""


def compute_phase(argument: str) -> str:
    """In a worker: the phase of a `PhaseJob` in JSON is written into the run's folder. Its failure in JSON, or nothing.

    After an error that leaves the GPU unusable the process ends: the run begins the phase again in a new one.
    """
    import torch

    quiet_libraries()
    work = decode(PhaseJob, argument)
    torch.set_num_threads(work.threads)
    folder = RunFolder(work.folder)
    with log_file(folder.path / "run.log"):
        try:
            session = _session(folder)
            step = next(step for step in steps_of(session.config) if step.phase.name == work.phase)
            folder.once(step.phase, lambda: step.compute(session))
        except UserError as error:
            _SESSIONS.clear()
            return encode(PhaseFailure(str(error)))
        except Exception as error:
            _SESSIONS.clear()
            if is_broken_device(error):
                raise SystemExit(f"{work.phase}: {' '.join(str(error).split())[:200]}") from error
            log.exception("%s failed", work.phase)
            memory = "memory ran out: take fewer workers, or smaller batches: " if is_out_of_memory(error) else ""
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return encode(PhaseFailure(f"{work.phase} failed, see {folder.path / 'run.log'}: {memory}{said}"))
    return ""


def _session(folder: RunFolder) -> Session:
    if folder.path not in _SESSIONS:
        _SESSIONS.clear()
        config = parse_config(str(folder.path / "config.yaml"), [], resumed=True)
        setup = folder.read(SETUP)
        frozen = () if setup is None else setup.tasks
        _SESSIONS[folder.path] = Session(config, folder.path, Silent(), frozen_tasks=frozen)
    return _SESSIONS[folder.path]


def compute_side_by_side(config: ExperimentConfig, folder: RunFolder, chosen: Workers, progress: Progress) -> None:
    """Compute every step of the run that is missing by `chosen` workers; the artifacts are in `folder`.

    UserError for what a worker says that the user can mend; what other workers were at is then lost, but for their journals.
    """
    steps = steps_of(config)
    gpus = visible_gpus() if chosen.engine.name == "local" else []
    workers, threads = share_machine(chosen.workers, chosen.threads, [config], len(gpus), jobs=len(steps))

    def job(step: Step) -> Job:
        work = PhaseJob(folder.path.absolute(), step.phase.name, threads)
        return Job(step.phase.name, f"{__name__}:compute_phase", encode(work))

    engine = chosen.engine.start(workers, threads, gpus, folder.path)
    try:
        progress.note(described(chosen.engine, workers, threads, len(gpus)))
        with folder.shared():
            run_steps(steps, engine, has=folder.has, job=job, tell=progress.note, seconds=folder.seconds)
    finally:
        engine.close()


def run_steps(
    steps: Sequence[Step],
    engine: Engine,
    *,
    has: Callable[[Phase[Any]], bool],
    job: Callable[[Step], Job],
    tell: Callable[[str], None] = lambda line: None,
    seconds: Callable[[Phase[Any]], float] = lambda phase: 0.0,
) -> None:
    """Compute the steps in their order, each as soon as what it needs is there and a worker is free.

    Args:
        steps: What is to be done.
        engine: Computes it.
        has: Whether a phase's artifact is there.
        job: The engine's job that computes a step.
        tell: Gets a line per step that begins or ends.
        seconds: What a phase took.

    Raises:
        UserError: What a worker says, or that workers died.
    """
    waiting, running, done = list(steps), dict[str, Step](), set[str]()
    attempts: dict[str, int] = {}
    while waiting or running:
        for step in [step for step in waiting if _ready(step, done)]:
            # Asked only here: what it follows from is there, so nothing removes it any more.
            if has(step.phase) or (step.part_of and has(step.part_of)):
                waiting.remove(step)
                done.add(step.phase.name)
            elif len(running) < engine.slots:
                waiting.remove(step)
                running[step.phase.name] = step
                attempts[step.phase.name] = attempts.get(step.phase.name, 0) + 1
                engine.submit(job(step))
                tell(f"{_title(step)} begins")
        if not running:
            continue
        for result in engine.finished(1.0):
            step = running.pop(result.job.name)
            if result.answer:
                raise UserError(decode(PhaseFailure, result.answer).reason)
            if not result.died:
                done.add(step.phase.name)
                tell(f"{_title(step)}: {duration(seconds(step.phase))}; {len(done)} of {len(steps)} done")
            elif attempts[step.phase.name] < ATTEMPTS:
                waiting.insert(0, step)
                tell(f"{_title(step)}: its worker died; begun again")
            else:
                raise UserError(f"the worker of {step.phase.name} died {ATTEMPTS} times (memory?); take fewer workers")


def _ready(step: Step, done: set[str]) -> bool:
    return all(phase.name in done for phase in step.after)


def _title(step: Step) -> str:
    return step.phase.name.replace("_", " ")
