"""Repair: the point on the way from one checkpoint to the next that keeps both tasks, exported as an adapter and scored."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.session import Session, checkpoint_name
from llm_forgetting.files import whole_folder
from llm_forgetting.forgetting.intervals import estimate_mean, paired_mean_change, paired_proportion_change, proportion
from llm_forgetting.landscape.lowrank import Update, truncated
from llm_forgetting.landscape.path import interpolate, selection_mask
from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.scoring import score_tasks

Result = dict[str, Any]
AVERAGE = 0.5


def repair(session: Session, path: Mapping[str, Any], *, rank: int | None, t: float | None) -> Result:
    """Export the adapter at t* (or `t`) of a measured `path` of a run, and score it beside both ends and their average.

    Exact by concatenation (the ranks of both ends together), or cut to `rank` by singular values, with the error stated. It is
    judged on items that had no part in choosing t* (`selection_mask` says which had): all other trained items, and the held-out ones.
    """
    config = session.config
    number = {checkpoint_name(k): k for k in range(1, len(config.data.tasks) + 1)}
    first, second = (session.at(number[path[end]]).adapter_factors() for end in ("from", "to"))
    chosen = float(path["repair"]["t"]) if t is None else t
    update, error = interpolate(first, second, chosen), 0.0
    if rank is not None:
        ranks = {name: min(rank, pair.A.shape[0]) for name, pair in update.items()}
        cut = truncated(update, ranks)
        update, error = cut.update, cut.relative_error
    folder = session.folder / "repaired_adapter"
    with whole_folder(folder) as scratch:
        session.model.save_update(scratch, update)
    candidates = {
        path["from"]: first,
        path["to"]: second,
        "average": interpolate(first, second, AVERAGE),
        "repaired": update,
    }
    return {
        "from": path["from"],
        "to": path["to"],
        "t": chosen,
        "chosen_by": "landscape items, which do not judge it" if t is None else "the user",
        "rank": max(pair.A.shape[0] for pair in update.values()),
        "truncation_error": error,
        "adapter": folder.name,
        "scores": _scores(session, candidates, path),
    }


def _scores(session: Session, candidates: Mapping[str, Update], path: Mapping[str, Any]) -> list[Result]:
    """One record per task and split: accuracy and loss of every candidate, and the repaired one's change from the last."""
    judged = judging_items(session)
    groups = [items for _, _, items in judged]
    found: dict[str, list[AnswerStatistics]] = {}
    total = len(candidates) * sum(map(len, groups))
    with session.progress.bar("scoring the repair", total) as advance, session.model.perturbed() as move:
        for name, update in candidates.items():
            move(update)
            found[name] = score_tasks(
                session.model, groups, session.config.evaluation.batch_size, lambda n: advance(n, "")
            )
    seed = session.config.training.seed
    records = []
    for index, (task, split, items) in enumerate(judged):
        before, after = (found[name][index] for name in (path["to"], "repaired"))
        records.append(
            {
                "task": task,
                "split": split,
                "items": [item.item.id for item in items],
                "accuracy": {name: asdict(proportion(scored[index].correct)) for name, scored in found.items()},
                "loss": {
                    name: asdict(estimate_mean(scored[index].losses, seed=seed)) for name, scored in found.items()
                },
                "accuracy_change": asdict(paired_proportion_change(before.correct, after.correct)),
                "loss_change": asdict(paired_mean_change(before.losses, after.losses, seed=seed)),
            }
        )
    return records


def judging_items(session: Session) -> list[tuple[str, str, list[Any]]]:
    """(task, split, items) that had no part in choosing t*."""
    judged = []
    for task, items in zip(session.encoded, session.landscape_items(), strict=True):
        pool = len(task.split(session.config.landscape.items))
        chose = {item.item.id for item, choice in zip(items, selection_mask(len(items), pool), strict=True) if choice}
        for split in ("train", "test"):
            left = [item for item in task.split(split) if item.item.id not in chose]
            if left:
                judged.append((task.name, split, left))
    return judged


def path_of(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last measured path of a finished run; UserError where there is none."""
    paths: Sequence[Mapping[str, Any]] = results.get("paths", [])
    if not paths:
        raise UserError(
            f"repair needs a run with a measured path between its checkpoints, this one has none: "
            f"{'; '.join(results.get('between_notes', [])) or 'run it again, with landscape.paths=true'}"
        )
    return paths[-1]
