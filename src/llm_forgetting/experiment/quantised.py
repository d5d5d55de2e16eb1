"""Phase of a run that scores its checkpoints with their weights quantised; it is made where that is asked for."""

from llm_forgetting.experiment.artifacts.item_records import item_records
from llm_forgetting.experiment.artifacts.phase_artifacts import Lines, checkpoint_name
from llm_forgetting.experiment.session import Session
from llm_forgetting.forgetting.quantised import quantised_name
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.forgetting.scores import SPLITS
from llm_forgetting.models.adapter.requantised import requantised
from llm_forgetting.models.language.scoring import score_tasks


def evaluate_quantised(session: Session, k: int) -> Lines:
    """Score the checkpoint after task k on every task and split with its weights quantised, in every kind that is asked for."""
    model, settings, name = session.at(k), session.config.evaluation, checkpoint_name(k)
    cells = [(task, split, task.split(split)) for task in session.encoded for split in SPLITS]
    total = len(settings.quantised) * sum(len(items) for _, _, items in cells)
    records: list[ItemRecord] = []
    with session.progress.bar(f"scoring {name}, quantised", total) as advance:
        for kind in settings.quantised:
            with requantised(model, kind):
                groups = [items for _, _, items in cells]
                scores = score_tasks(model, groups, settings.batch_size, lambda n: advance(n, ""))
            for (task, split, items), scored in zip(cells, scores, strict=True):
                records += item_records(quantised_name(name, kind), task.name, split, items, scored)
    return tuple(records)
