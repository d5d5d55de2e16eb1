"""Phases between the checkpoints of an experiment: paths, plane and forecasts, each whole and in its parts."""

from functools import partial
from pathlib import Path

from llm_forgetting.curvature.records import ForecastPhase
from llm_forgetting.experiment.analysis.forecast import analyse_forecast, forecast_evaluations
from llm_forgetting.experiment.analysis.paths import joined, path_between, path_objective, plane_through
from llm_forgetting.experiment.artifacts.phase_artifacts import (
    BETWEEN,
    PLANE,
    checkpoint_name,
    forecast_phase,
    path_phase,
)
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.session import Session, choose_landscape_items
from llm_forgetting.files.manifest import require_whole
from llm_forgetting.landscape.between_records import BetweenCheckpoints
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.lowrank import read_update


def scan_paths(session: Session) -> BetweenCheckpoints:
    """Paths between successive checkpoints, and the plane through the initial, the first and the last one.

    Parts that were measured apart are read back.
    """
    folder, settings = RunFolder(session.folder), session.config.landscape
    last = len(session.config.data.tasks)
    _require_trajectory(session)
    paths = range(2, last + 1) if settings.paths else ()
    parts = [folder.read(path_phase(checkpoint_name(k))) or scan_path(session, k) for k in paths]
    if settings.checkpoint_plane and last > 1:
        parts.append(folder.read(PLANE) or scan_checkpoint_plane(session))
    return joined(parts)


def scan_path(session: Session, k: int) -> BetweenCheckpoints:
    """The path from the checkpoint after task k - 1 to that after task k."""
    updates, settings, ends = session.updates(), session.config.landscape, (checkpoint_name(k - 1), checkpoint_name(k))
    tasks = _between(session, *ends)
    return path_between(
        path_objective(session.model, session.named_landscape_items(), settings).only(tasks),
        {name: updates[name] for name in ends},
        settings,
        progress=session.progress,
        journal=session.journal,
        pools=[len(session.encoded[place].split(settings.items)) for place in tasks],
    )


def scan_checkpoint_plane(session: Session) -> BetweenCheckpoints:
    """The plane through the initial, the first and the last checkpoint, and the epochs' adapters projected onto it."""
    updates, settings, last = session.updates(), session.config.landscape, len(session.config.data.tasks)
    _require_trajectory(session)
    epochs = {
        f"task {k}, epoch {int(folder.name.removeprefix('epoch_'))}": folder
        for k in range(1, last + 1)
        for folder in sorted(session.trajectory_folder(k).glob("epoch_*"))
    }
    return plane_through(
        path_objective(session.model, session.named_landscape_items(), settings).only(
            _between(session, checkpoint_name(1), checkpoint_name(last))
        ),
        {name: updates[name] for name in map(checkpoint_name, (0, 1, last))},
        settings,
        progress=session.progress,
        journal=session.journal,
        trajectory={name: partial(_of_epoch, session, folder) for name, folder in epochs.items()},
    )


def _require_trajectory(session: Session) -> None:
    config = session.config
    for k in range(1, len(config.data.tasks) + 1) if config.landscape.trajectory else ():
        again = f"remove phases/train_task*.json in {session.folder}: then --resume trains again"
        require_whole(session.folder, f"phases/{session.trajectory_folder(k).name}", again)


def _between(session: Session, start: str, end: str) -> list[int]:
    """Places of the tasks that are measured between two checkpoints."""
    last = len(session.config.data.tasks)
    numbers = {checkpoint_name(k): k for k in range(last + 1)}
    return [number - 1 for number in session.config.landscape.tasks_between(numbers[start], numbers[end], last)]


def _of_epoch(session: Session, folder: Path) -> WeightUpdate:
    """delta W at the end of an epoch, where the model is."""
    return session.model.update_of(read_update(folder / "update.safetensors"))


def forecast_forgetting(session: Session) -> tuple[ForecastPhase, ...]:
    """For every step from one trained checkpoint to the next: the forecast at its start of all tasks learnt before.

    Steps that were forecast apart are read back.
    """
    folder, steps = RunFolder(session.folder), range(1, len(session.config.data.tasks))
    between = folder.read(BETWEEN)
    parts = [folder.read(forecast_phase(checkpoint_name(k))) or forecast_step(session, k, between) for k in steps]
    return tuple(step for part in parts for step in part)


def forecast_step(session: Session, k: int, between: BetweenCheckpoints | None = None) -> tuple[ForecastPhase, ...]:
    """The forecast at the checkpoint after task k, beside the path from there, of `between` or measured apart."""
    config, named = session.config, session.named_landscape_items()
    own = config.landscape.items
    other = "test" if own == "train" else "train"
    old = {
        task.name: {own: items, other: choose_landscape_items(task.split(other), task.name, config.landscape)}
        for task, (_, items) in (
            (session.encoded[number - 1], named[number - 1]) for number in config.landscape.tasks_forecast(k)
        )
    }
    first, second = ((checkpoint_name(n), session.at(n).adapter_factors()) for n in (k, k + 1))
    between = between or RunFolder(session.folder).read(path_phase(checkpoint_name(k + 1)))
    path = next((path for path in between.paths if path.start == checkpoint_name(k)), None) if between else None
    with session.progress.bar(f"forecast from {checkpoint_name(k)}", forecast_evaluations(len(old))) as advance:
        step = analyse_forecast(
            session.model,
            first,
            second,
            old=old,
            new=named[k][1],
            path=path,
            config=config.curvature,
            tau=config.landscape.tau,
            batch_size=config.landscape.batch_size,
            advance=advance,
            journal=session.journal(forecast_phase(checkpoint_name(k)).name),
        )
    return (step,)
