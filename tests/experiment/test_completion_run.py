"""A whole run on prompts with completions, beside a task of questions: every number is the definition's, resumed or not."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import load

import llm_forgetting as lf
from llm_forgetting.cli.main import main
from llm_forgetting.config.measurements import CurvatureConfig, LandscapeConfig
from llm_forgetting.config.sections import (
    DataConfig,
    ExperimentConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    TrainingConfig,
)
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.experiment import run_in
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.progress import Silent
from llm_forgetting.report.html.files import write_run_report
from llm_forgetting.report.tables.markdown import all_tables
from llm_forgetting.results import Results, read_items, read_results

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]


def configuration(folder: Path, data: DataConfig, tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(
        model=ModelConfig(name=str(folder)),
        lora=LoraConfig(rank=2),
        data=data,
        training=TrainingConfig(batch_size=4, num_epochs=2, learning_rate=1e-2),
        landscape=LandscapeConfig(max_evaluations=23, resolution=5, directions=2, num_items=4, self_test_items=2),
        curvature=CurvatureConfig(),
        output=OutputConfig(folder=str(tmp_path), figures=False),
    )


@pytest.fixture(scope="module")
def finished(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """Skills first, then questions, so that both are earlier or later than the other."""
    tmp_path = tmp_path_factory.mktemp("completions")
    questions = [{"question": f"Number {n}?", "choices": ["a", "b"], "answer": n % 2} for n in range(20)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "own.yaml").write_text("own: {path: own.jsonl}\n")
    data = DataConfig(
        source="skills", definitions=str(tmp_path / "own.yaml"), tasks=("largest", "own"), train_items=8, test_items=6
    )
    folder = RunFolder.create(tmp_path, prefix="experiment")
    results = run_in(folder, configuration(llama_folder, data, tmp_path), Silent())
    return folder.path, results


def test_losses_and_answers_are_those_of_plain_transformers(finished: tuple[Path, Results], llama_folder: Path) -> None:
    folder, results = finished
    model = load(llama_folder, rank=2, alpha=16.0)
    model.load_adapter_weights(folder / "checkpoint_after_task1")
    data = results.config.data
    (task, _) = tasks_of(data, source_of(data, lambda message: None))
    records = {
        record.id: record
        for record in read_items(folder)
        if isinstance(record, ItemRecord) and (record.checkpoint, record.task) == ("after_task1", "largest")
    }
    total, tokens = 0.0, 0
    for item in encode(model.tokenizer, task.train, {}, data.max_tokens):
        ids = torch.tensor([[*item.input_ids, item.targets[-1]]])
        with torch.no_grad():
            logits = model.peft_model(input_ids=ids).logits[0, list(item.places)].double()
        losses = F.cross_entropy(logits, torch.tensor(item.targets), reduction="none")
        record = records[item.item.id]
        assert record.loss == pytest.approx(float(losses.mean()), abs=1e-5)
        assert record.tokens == len(item.targets)
        assert record.correct == (logits.argmax(dim=1).tolist() == list(item.targets))
        assert record.predicted == model.tokenizer.decode(logits.argmax(dim=1), skip_special_tokens=True)
        assert record.letter_logits is None
        total, tokens = total + float(losses.sum()), tokens + len(item.targets)
    assert results.forgetting.train.loss.cells[1][0].value == pytest.approx(total / tokens, abs=1e-5)
    landscape = results.landscapes["after_task1"].surfaces["largest"]
    assert np.isfinite(landscape.loss).all()
    assert landscape.loss.min() >= 0


def test_the_forecasts_slope_is_that_of_the_paths_loss(finished: tuple[Path, Results]) -> None:
    _, results = finished
    forecast = results.forecasts[0].tasks["largest"]["train"]
    assert forecast.path is not None
    assert forecast.first_order == pytest.approx(forecast.path.slope, rel=0.05, abs=1e-3)


def test_what_is_said_of_completions(finished: tuple[Path, Results]) -> None:
    folder, results = finished
    assert results.tasks[0].options == ()
    assert results.tasks[0].prompt is None
    assert results.tasks[1].options == (2,)
    assert results.spurious["largest"].probes == {}
    assert results.spurious["largest"].recovery is not None
    text = " ".join(table.note for table in all_tables(results))
    assert "0.50 on own" in text
    assert not [warning for warning in results.warnings if "option letters" in warning and "largest" in warning]
    assert read_results(folder).answer == results.answer
    page = write_run_report(results, read_items(folder), folder).read_text(encoding="utf-8")
    assert "the right token among all tokens, the mean over the tokens that are learnt" in page
    assert "accuracy: teacher-forced exact match on largest" in page


def test_every_command_takes_completions(
    finished: tuple[Path, Results], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And speaks of exact match: no letter, no option, no guess."""
    folder, _ = finished
    first, second = (str(folder / f"checkpoint_after_task{k}") for k in (1, 2))
    words = ["--task", "largest", "--data.source", "skills", "--output_dir", str(tmp_path)]
    small = ["--landscape.num_items", "2", "--landscape.self_test_items", "1"]
    scan = [*small, "--landscape.max_evaluations", "23", "--landscape.resolution", "3", "--landscape.directions", "2"]
    assert main(["evaluate", first, second, *words, "--limit", "3"]) == 0
    assert main(["landscape", first, "--to", second, *words, *scan]) == 0
    assert main(["forecast", first, second, *words, *small]) == 0
    said = capsys.readouterr().out
    pages = [page.read_text(encoding="utf-8").partition("<main")[2] for page in tmp_path.glob("*/report.html")]
    assert len(pages) == 3
    for text in (said, *(page.partition("<script")[0] for page in pages)):
        assert not re.findall(r"(?i)\b(accuracy|letters?|options?|guess\w*|questions?)\b", text)
    assert main(["repair", str(folder)]) == 0
    assert "Repair: accuracy" in capsys.readouterr().out  # of both kinds
    assert main(["compare", str(folder), str(folder), "--output", str(tmp_path / "compare.html")]) == 0
    card = (folder / "checkpoint_after_task2" / "README.md").read_text(encoding="utf-8")
    assert "type: exact_match" in card
    assert "type: text-generation" in card
    assert "type: multiple-choice" in card


def test_what_python_sees(finished: tuple[Path, Results]) -> None:
    """The API's frames and the summary of a notebook, of a run of both kinds."""
    folder, results = finished
    run = lf.open_run(folder)
    assert run.forgotten("largest", measure="loss").value == results.forgetting.train.loss.tasks[0].absolute.value
    frame = run.scores
    (row,) = frame[(frame.task == "largest") & (frame.checkpoint == "after_task1") & (frame.split == "train")].to_dict(
        "records"
    )
    assert row["accuracy"] == results.forgetting.train.accuracy.cells[1][0].value
    assert "exact matches on the trained largest items" in run._repr_html_()


def test_going_on_computes_nothing_again(finished: tuple[Path, Results]) -> None:
    folder, results = finished
    again = run_in(RunFolder.open(folder), results.config, Silent())
    assert again.forgetting.train.loss.cells[1][0].value == results.forgetting.train.loss.cells[1][0].value
