"""Repair: the point of the path between two checkpoints that keeps both tasks, exported as an adapter and scored."""

from collections.abc import Mapping

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.phase_artifacts import checkpoint_name
from llm_forgetting.experiment.session import Session
from llm_forgetting.experiment.trained_items import REPAIRED
from llm_forgetting.files.manifest import recorded_folder
from llm_forgetting.forgetting.intervals import paired_proportion_change, proportion
from llm_forgetting.forgetting.mean_intervals import estimate_mean, paired_mean_change
from llm_forgetting.forgetting.scores import SPLITS, Split
from llm_forgetting.landscape.between_records import PathScan
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.lowrank import truncated
from llm_forgetting.landscape.path import interpolate, selection_mask
from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.scoring import passes, score_tasks
from llm_forgetting.results import RepairRecord, RepairScore, Results

AVERAGE = 0.5


def repair(session: Session, path: PathScan, *, rank: int | None, t: float | None) -> RepairRecord:
    """Export the adapter at t* (or `t`) of a measured `path` of a run, and score it beside both ends and their average.

    Exact by concatenation (the ranks of both ends together), or cut to `rank` by singular values, with the error stated. It is
    scored on items that had no part in choosing t*: all other trained items, and the held-out ones.
    """
    config = session.config
    number = {checkpoint_name(k): k for k in range(1, len(config.data.tasks) + 1)}
    first, second = (session.at(number[end]).adapter_factors() for end in (path.start, path.to))
    chosen = path.repair.t if t is None else t
    update, error = interpolate(first, second, chosen), 0.0
    if rank is not None:
        session.model.require_low_rank("--rank")
        ranks = {name: min(rank, pair.A.shape[0]) for name, pair in update.items()}
        cut = truncated(update, ranks)
        update, error = cut.update, cut.relative_error
    with recorded_folder(session.folder, REPAIRED) as scratch:
        session.model.save_update(scratch, update)
    average = interpolate(first, second, AVERAGE)
    candidates = {path.start: first, path.to: second, "average": average, "repaired": update}
    return RepairRecord(
        config=config,
        start=path.start,
        to=path.to,
        t=chosen,
        chosen_by="landscape items, which do not judge it" if t is None else "the user",
        rank=max((pair.A.shape[0] for pair in update.values()), default=0) if session.model.low_rank else 0,
        truncation_error=error,
        adapter=REPAIRED,
        scores=_scores(session, candidates, path.to),
    )


def _scores(session: Session, candidates: Mapping[str, WeightUpdate], last: str) -> tuple[RepairScore, ...]:
    """Scores of every candidate per task and split, and the repaired one's change from checkpoint `last`."""
    judged = judging_items(session)
    groups = [items for _, _, items in judged]
    scores: dict[str, list[AnswerStatistics]] = {}
    total = len(candidates) * passes(groups)
    with session.progress.bar("scoring the repair", total) as advance, session.model.perturbed() as move:
        for name, update in candidates.items():
            move(update)
            scores[name] = score_tasks(
                session.model, groups, session.config.evaluation.batch_size, lambda n: advance(n, "")
            )
    seed = session.config.training.seed
    return tuple(
        RepairScore(
            task=task,
            split=split,
            items=tuple(item.item.id for item in items),
            accuracy={name: proportion(scored[index].correct) for name, scored in scores.items()},
            loss={name: estimate_mean(scored[index].weighted_losses, seed=seed) for name, scored in scores.items()},
            accuracy_change=paired_proportion_change(scores[last][index].correct, scores["repaired"][index].correct),
            loss_change=paired_mean_change(
                scores[last][index].weighted_losses, scores["repaired"][index].weighted_losses, seed=seed
            ),
        )
        for index, (task, split, items) in enumerate(judged)
    )


def judging_items(session: Session) -> list[tuple[str, Split, list[EncodedItem]]]:
    """(task, split, items) that had no part in choosing t*."""
    judged = []
    for task, items in zip(session.encoded, session.landscape_items(), strict=True):
        pool = len(task.split(session.config.landscape.items))
        chose = {item.item.id for item, choice in zip(items, selection_mask(len(items), pool), strict=True) if choice}
        for split in SPLITS:
            left = [item for item in task.split(split) if item.item.id not in chose]
            if left:
                judged.append((task.name, split, left))
    return judged


def path_of(results: Results) -> PathScan:
    """The last measured path of a finished run; UserError where there is none."""
    if not results.paths:
        raise UserError(
            f"repair needs a run with a measured path between its checkpoints, this one has none: "
            f"{'; '.join(results.between_notes) or 'run it again, with landscape.paths=true'}"
        )
    return results.paths[-1]
