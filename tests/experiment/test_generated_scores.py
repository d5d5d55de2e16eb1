"""Phases and `evaluate` with tasks that are judged by what the model writes; no whole run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import load

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.config.sections import DataConfig, EvaluateConfig, ExperimentConfig, LoraConfig, ModelConfig
from llm_forgetting.experiment import phases, phases_setup
from llm_forgetting.experiment.adapter_evaluation import evaluate_adapter, evaluate_pair
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.cost.lengths import item_lengths
from llm_forgetting.experiment.cost.work import task_sizes, work_of
from llm_forgetting.experiment.session import Session
from llm_forgetting.files import decode, encode
from llm_forgetting.forgetting.evaluation import PooledAccuracy, SubjectEvaluation, TaskEvaluation
from llm_forgetting.forgetting.intervals import proportion
from llm_forgetting.forgetting.mean_intervals import Mean
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.models.language.generation import write
from llm_forgetting.progress import Silent
from llm_forgetting.report.html.evaluation import _method
from llm_forgetting.report.tables.evaluation import evaluation_table
from llm_forgetting.report.tables.words import WHEN_RIGHT
from llm_forgetting.results import TaskSetup
from llm_forgetting.tasks.scoring import TITLES, Scoring

pytestmark = pytest.mark.usefixtures("one_thread")

OWN = """
spoken: {source: skills, subjects: [largest], score: {answer: number, max_new_tokens: 6, rouge: true}}
"""


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    (tmp_path / "own.yaml").write_text(OWN)
    tasks = ("spoken", "reverse")
    definitions = str(tmp_path / "own.yaml")
    return DataConfig(source="skills", definitions=definitions, tasks=tasks, train_items=4, test_items=3)


def configuration(folder: Path, data: DataConfig) -> ExperimentConfig:
    landscape = LandscapeConfig(num_items=2, self_test_items=2)
    return ExperimentConfig(
        model=ModelConfig(name=str(folder)), lora=LoraConfig(rank=2), data=data, landscape=landscape
    )


def test_a_phase_scores_what_is_written(llama_folder: Path, tmp_path: Path, data: DataConfig) -> None:
    pytest.importorskip("rouge_score")
    config = configuration(llama_folder, data)
    folder = RunFolder.create(tmp_path, prefix="run")
    session = Session(config, folder.path, Silent())
    records = [record for record in phases.evaluate(session, 0) if isinstance(record, ItemRecord)]
    spoken = {(record.split, record.id): record for record in records if record.task == "spoken"}
    encoded = session.encoded[0]
    for split in ("train", "test"):
        for item, found in zip(encoded.split(split), write(session.model, encoded.split(split), 2), strict=True):
            record = spoken[split, item.item.id]
            assert (record.generated, record.predicted) == (found.text, found.answer or "")
            assert record.answer == item.item.answer.strip()
            assert (record.correct, record.rouge_l) == (found.right, found.rouge_l)
            assert record.teacher_forced is not None
            assert record.tokens == len(item.targets)
    assert all(record.generated is record.teacher_forced is None for record in records if record.task == "reverse")
    line = next(iter(spoken.values()))
    assert encode(decode(ItemRecord, encode(line))) == encode(line)
    own, other = phases_setup.set_up(session, folder).tasks
    assert own.score is not None
    assert (own.score.title, own.score.answer) == ("exact match of generated answers", "number")
    assert other.score is not None
    assert other.score.title == "teacher-forced exact match"
    older: Any = encode(replace(own, score=None))
    assert "score" not in older
    assert decode(TaskSetup, older).score is None


@pytest.mark.process  # its results name the processor, for which Python asks `uname`
def test_evaluate_says_what_its_accuracy_is(llama_folder: Path, tmp_path: Path, data: DataConfig) -> None:
    pytest.importorskip("rouge_score")
    model = load(llama_folder)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        model.save(tmp_path / name)
    config = EvaluateConfig(model=ModelConfig(name=str(llama_folder)), data=data)
    results, records = evaluate_adapter(config, tmp_path / "a", 3, Silent())
    spoken, reverse = results.tasks
    assert (spoken.measure, reverse.measure) == ("exact match of generated answers", "teacher-forced exact match")
    rouge = [record.rouge_l for record in records if record.rouge_l is not None]
    assert len(rouge) == 3
    assert spoken.subjects[0].rouge_l == pytest.approx(np.mean(rouge))
    assert f"spoken: {spoken.measure}; ROUGE-L {np.mean(rouge):.4f}." in evaluation_table(results).note
    assert decode(TaskEvaluation, encode(spoken)) == spoken
    pair, both = evaluate_pair(config, (tmp_path / "a", tmp_path / "b"), 3, Silent())
    assert pair.changes is not None
    texts = [record.generated for record in both if record.task == "spoken"]
    assert texts[:3] == texts[3:] == [record.generated for record in records if record.task == "spoken"]


def test_the_cost_counts_what_is_written(llama_folder: Path, data: DataConfig) -> None:
    config = configuration(llama_folder, data)
    lengths = item_lengths(config, lambda message: None)
    sizes = task_sizes(lengths)
    (written,) = (work for work in work_of(config, sizes) if work.label.startswith("write completions"))
    tokens = sum(len(item.targets) for split in ("train", "test") for item in lengths.tasks[0].split(split))
    assert written.tokens["scores"] == pytest.approx(3 * tokens)
    without = [replace(size, judged=0) for size in sizes]
    assert not [work for work in work_of(config, without) if work.label.startswith("write completions")]


def test_reports_of_options_and_of_generated_answers_say_which_is_right() -> None:
    """What `evaluate` and a run's report say, by tasks alone."""
    subject = SubjectEvaluation("s", 1, (), 0, proportion([True]), Mean(1.0, None, 1, None), 0.5, 0.1, completions=True)
    found = {
        by: TaskEvaluation("s", (subject,), PooledAccuracy(1.0, None, 1), measure=Scoring(by).title) for by in TITLES
    }
    assert [task.is_exact_match for task in found.values()] == [True, True, False, False]
    assert replace(found["likelihood"], measure=None).is_exact_match  # of an older evaluation
    for by, task in found.items():
        assert WHEN_RIGHT[by] in " ".join(_method(False, True, [task.measure]))
    assert "every token is the most likely one" in " ".join(_method(False, True, [None]))
