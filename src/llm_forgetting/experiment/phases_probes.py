"""Scores of a checkpoint on tasks that are never trained on: our own, and those of lm-evaluation-harness."""

from llm_forgetting.config.sections import DataConfig
from llm_forgetting.experiment.artifacts.item_records import item_records
from llm_forgetting.experiment.artifacts.phase_artifacts import Lines, checkpoint_name
from llm_forgetting.experiment.inputs import require_same_documents
from llm_forgetting.experiment.session import Session
from llm_forgetting.experiment.tasks import HARNESS, harness_folder, harness_probes, own_probes
from llm_forgetting.forgetting.records import Line, SampleRecord
from llm_forgetting.models.language.harness import harness_samples
from llm_forgetting.models.language.scoring import merged, passes, score_tasks


def are_scored(data: DataConfig) -> bool:
    """Whether there are probes to be scored: more than the unrelated text, which every run scores."""
    return bool(own_probes(data) or harness_probes(data))


def evaluate_probes(session: Session, k: int) -> Lines:
    """Score the checkpoint after task k on every probe: one record per item or sample."""
    model, probes, name = session.at(k), session.encoded_probes, checkpoint_name(k)
    records: list[Line] = []
    if probes:
        groups = [probe.test for probe in probes]
        with session.progress.bar(f"scoring {name} on probes", passes(groups)) as advance, merged(model):
            scores = score_tasks(model, groups, session.config.evaluation.batch_size, lambda n: advance(n, ""))
        for probe, scored in zip(probes, scores, strict=True):
            records += item_records(name, probe.name, "probe", probe.test, scored, decode=model.decode)
    if harness := harness_probes(session.config.data):
        with session.progress.bar(f"{name} in lm-evaluation-harness", len(harness)) as advance:
            data, batch_size = session.config.data, session.config.evaluation.batch_size
            limit = data.probe_limit or data.test_items
            scored_tasks = harness_samples(model, harness, harness_folder(data), limit, batch_size)
            advance(len(harness), "")
        require_same_documents(session.folder, scored_tasks)
        records += [
            SampleRecord(name, f"{HARNESS}{task}", "harness", one.id, one.task, one.hash, one.metrics, one.options)
            for task, samples in scored_tasks.items()
            for one in samples
        ]
    return tuple(records)
