"""`llm-forgetting evaluate`: whole test splits, as lm-evaluation-harness measures them."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from runs import Shell, read_results
from tiny_models import fill_adapter, load, make_items

from llm_forgetting.config.sections import DataConfig, LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.adapter_evaluation import subject_items
from llm_forgetting.files import from_plain
from llm_forgetting.forgetting.evaluation import TaskEvaluation
from llm_forgetting.forgetting.intervals import pooled_stderr, proportion
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import merged, score
from llm_forgetting.tasks.sources import LoadedSource, open_source
from llm_forgetting.tasks.task import Item, Pool

HARNESS = json.loads((Path(__file__).parents[1] / "data/harness_log_likelihoods.json").read_text())
SMOLLM2 = Path(os.environ.get("LLM_FORGETTING_CACHE") or platformdirs.user_cache_path("llm-forgetting"))
MMLU = Path(os.environ.get("MMLU_FOLDER") or Path(__file__).resolve().parents[3] / "shared/data/mmlu")
with_smollm2 = pytest.mark.skipif(
    not (SMOLLM2 / "SmolLM2-135M-Instruct").is_dir(), reason="the embedded model is not in the cache"
)


# What is scored


def source(rows: int = 5, shots: int = 3, split: str = "test") -> LoadedSource:
    def items(name: str, count: int) -> tuple[Item, ...]:
        return tuple(Item(f"trees/{name}/{n}", "trees", f"{name} {n}", ("p", "q"), n % 2) for n in range(count))

    return LoadedSource("trees", {"trees": (*items("val", 2), *items(split, rows))}, {"trees": items("dev", shots)})


def pool(**changes: Any) -> Pool:
    return source(**changes).pool("trees", ("trees",))


def test_the_test_rows_are_scored_in_file_order_and_validation_rows_are_not() -> None:
    part = subject_items(pool(), "trees", DataConfig(few_shot=2), None)
    assert [item.id for item in part.items] == [f"trees/test/{n}" for n in range(5)]
    assert [item.id for item in part.shots] == ["trees/dev/0", "trees/dev/1"]
    assert len(subject_items(pool(), "trees", DataConfig(), 2).items) == 2


def test_a_source_without_splits_is_scored_whole() -> None:
    assert len(subject_items(pool(split="rows"), "trees", DataConfig(), None).items) == 7


def test_duplicates_stay_in() -> None:
    twice = (Item("trees/test/0", "trees", "same", ("p", "q"), 0), Item("trees/test/1", "trees", "same", ("p", "q"), 0))
    found = LoadedSource("trees", {"trees": twice}, {})
    assert len(subject_items(found.pool("trees", ("trees",)), "trees", DataConfig(), None).items) == 2


def test_too_few_examples_end_in_one_line() -> None:
    with pytest.raises(UserError, match=r"few_shot=4 needs as many few-shot rows of trees, this source has 3"):
        subject_items(pool(), "trees", DataConfig(few_shot=4), None)


# Pooling


def test_pooled_stderr_by_hand() -> None:
    """Groups of 2 and 3 items: 0, 1 and 0, 1, 1. Variances 1/2 and 1/3, pooled (1/2 + 2/3) / 3 = 7/18."""
    found = pooled_stderr([math.sqrt(0.5 / 2), math.sqrt(1 / 3 / 3)], [2, 3])
    assert found == pytest.approx(math.sqrt(7 / 18 / 5))


def test_one_group_pools_to_itself() -> None:
    assert pooled_stderr([0.041633], [100]) == pytest.approx(0.041633)


@pytest.mark.parametrize(("stderrs", "sizes"), [([0.1], [1]), ([0.1, 0.2], [5]), ([0.1, 0.1], [5, 0])])
def test_groups_of_one_item_cannot_be_pooled(stderrs: list[float], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="two items or more"):
        pooled_stderr(stderrs, sizes)


# The harness's own numbers, recorded by benchmarks/evaluation.py's worker


@pytest.mark.parametrize(
    "case", HARNESS["cases"], ids=lambda case: f"{case['model']}-{case['subject']}-{case['shots']}"
)
def test_recorded_log_likelihoods_give_the_recorded_accuracy_and_stderr(case: dict[str, Any]) -> None:
    """argmax and sd(n - 1) / sqrt(n), to all digits."""
    correct = np.array(case["log_likelihoods"]).argmax(axis=1) == np.array(case["answers"])
    found = proportion(correct)
    assert (found.value, found.stderr) == pytest.approx((case["accuracy"], case["stderr"]), abs=1e-12)


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    return LanguageModel.load(ModelConfig(), LoraConfig(rank=1), seed=0)


@pytest.mark.slow
@with_smollm2
@pytest.mark.parametrize("subject", ["abstract_algebra", "anatomy"])
def test_zero_shot_log_likelihoods_are_the_harness_s(smollm2: LanguageModel, subject: str) -> None:
    """On the rows that the embedded sample has: the first of each test file."""
    case = recorded("backbone", subject, 0)
    items = open_source(source="embedded").pool(subject, (subject,)).rows[:12]
    assert [item.id for item in items] == [f"{subject}/test/{n}" for n in range(12)]
    found = score(smollm2, encode(smollm2.tokenizer, items, {}, 2048), None)
    np.testing.assert_allclose(found.log_likelihoods, case["log_likelihoods"][:12], atol=1e-4)


@with_smollm2
@pytest.mark.skipif(not MMLU.is_dir(), reason="MMLU's own files (MMLU_FOLDER) are not here")
@pytest.mark.parametrize("subject", ["abstract_algebra", "anatomy"])
@pytest.mark.slow
def test_few_shot_log_likelihoods_are_the_harness_s(smollm2: LanguageModel, subject: str) -> None:
    case = recorded("backbone", subject, 5)
    rows = open_source(source="local", path=str(MMLU)).pool(subject, (subject,))
    part = subject_items(rows, subject, DataConfig(few_shot=5), 8)
    with merged(smollm2):
        found = score(smollm2, encode(smollm2.tokenizer, part.items, {subject: part.shots}, 2048), 3)
    np.testing.assert_allclose(found.log_likelihoods, case["log_likelihoods"][:8], atol=1e-4)


def recorded(model: str, subject: str, shots: int) -> dict[str, Any]:
    found: dict[str, Any] = next(
        case for case in HARNESS["cases"] if (case["model"], case["subject"], case["shots"]) == (model, subject, shots)
    )
    return found


# The command


def test_log_likelihoods_are_a_softmax_over_the_vocabulary(llama_folder: Path) -> None:
    model = load(llama_folder)
    items = encode(model.tokenizer, make_items(5, [4, 2]), {}, 400)
    found = score(model, items, 2).log_likelihoods
    for row, item in enumerate(items):
        with torch.inference_mode():
            plain = model.peft_model(input_ids=torch.tensor([item.input_ids])).logits[0, -1].log_softmax(0)
        np.testing.assert_allclose(found[row, : len(item.letter_ids)], plain[list(item.letter_ids)], atol=1e-5)
    assert np.isneginf(found[1, 2:]).all()


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "trees.jsonl"
    rows = [{"question": item.question, "choices": item.choices, "answer": item.answer} for item in make_items(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_an_adapter_is_evaluated_from_the_command_line(
    shell: Shell, llama_folder: Path, own_data: Path, tmp_path: Path
) -> None:
    model = load(llama_folder, trained=False)
    fill_adapter(model.peft_model, 1)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    model.save(adapter)
    data = ("--data.source", "local", "--data.path", own_data)
    done = shell("evaluate", adapter, "--task", "trees", "--model_name", llama_folder, *data, "--output_dir", tmp_path)
    assert done.status == 0, done.stderr
    (folder,) = tmp_path.glob("evaluation_*")
    content = json.loads((folder / "evaluation.json").read_text())
    records = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    expected = score(model, encode(model.tokenizer, make_items(9), {}, 2048), 4)
    np.testing.assert_allclose([record["loss"] for record in records], expected.losses, atol=1e-5)
    (found,) = content["tasks"][0]["subjects"]
    assert found["accuracy"]["value"] == pytest.approx(expected.correct.mean())
    assert content["adapter"] == str(adapter)
    assert f"{found['accuracy']['value']:.4f} ± {found['accuracy']['stderr']:.4f}" in done.stdout


def test_the_bare_backbone_is_evaluated_without_an_adapter(
    shell: Shell, llama_folder: Path, own_data: Path, tmp_path: Path
) -> None:
    data = ("--data.source", "local", "--data.path", own_data, "--limit", "4")
    done = shell("evaluate", "--task", "trees", "--model_name", llama_folder, *data, "--output_dir", tmp_path)
    assert done.status == 0, done.stderr
    (folder,) = tmp_path.glob("evaluation_*")
    records = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    bare = load(llama_folder, trained=False)
    expected = score(bare, encode(bare.tokenizer, make_items(9)[:4], {}, 2048), 4)
    np.testing.assert_allclose([record["loss"] for record in records], expected.losses, atol=1e-5)


def evaluated(shell: Shell, folder: Path, *arguments: object) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """evaluation.json, items.jsonl and what the terminal said."""
    done = shell("evaluate", *arguments, "--output_dir", folder)
    assert done.status == 0, done.stderr
    (found,) = folder.glob("evaluation_*")
    lines = [json.loads(line) for line in (found / "items.jsonl").read_text().splitlines()]
    return json.loads((found / "evaluation.json").read_text()), lines, done.stdout + (found / "report.html").read_text()


def share_of(lines: list[dict[str, Any]]) -> tuple[int, int]:
    return sum(line["correct"] for line in lines), len(lines)


@pytest.mark.parametrize("place", ["source", "files"])
def test_items_that_a_run_trained_on_are_not_called_test_items(
    shell: Shell, tiny_run: Path, tmp_path: Path, place: str
) -> None:
    """Also where the same rows come from a file, under other ids."""
    names = ("synthetic_1", "synthetic_2")
    rows = {name: open_source(source="synthetic").pool(name, (name,)).rows for name in names}
    if place == "source":
        data: tuple[object, ...] = ("--data.source", "synthetic")
    else:
        (tmp_path / "rows").mkdir()
        for name, items in rows.items():
            content = [{"question": i.question, "choices": i.choices, "answer": i.answer} for i in items]
            (tmp_path / f"rows/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        data = ("--data.source", "local", "--data.path", tmp_path / "rows", "--model.name", tiny_model(shell))
    tasks = ("--task", names[0], "--task", names[1])
    adapter = tiny_run / "checkpoint_after_task1"
    content, lines, said = evaluated(shell, tmp_path / "out", adapter, *tasks, *data)
    frozen = {task["name"]: task["splits"]["train"] for task in read_results(tiny_run)["tasks"]}
    hashes = {entry["sha256"] for entry in frozen["synthetic_1"]}
    first, second = content["tasks"]
    assert content["run"] == str(tiny_run)
    trained = [line for line, item in zip(lines, rows[names[0]], strict=False) if item.sha256 in hashes]
    held_out = [line for line in lines[: len(rows[names[0]])] if line not in trained]
    assert first["trained"]["n"] == len(trained) == 16
    assert (first["subjects"][0]["trained"]["correct"], first["trained"]["n"]) == share_of(trained)
    right, n = share_of(held_out)
    assert (first["subjects"][0]["held_out"]["correct"], first["held_out"]["n"]) == (right, n)
    # the second task comes after this checkpoint
    assert second["trained"] is second["held_out"] is second["subjects"][0]["trained"] is None
    assert [line["split"] for line in trained] == ["train"] * 16
    assert {line["split"] for line in [*held_out, *lines[len(rows[names[0]]) :]]} == {"test"}
    warning = f"synthetic_1: 16 of {len(trained) + n} items were trained on; held-out: {right} of {n} right"
    assert content["warnings"] == [warning]
    assert said.count(warning) >= 2
    assert "Test accuracy" not in said
    assert f"{right} of {n} held-out items are answered right" in said


def tiny_model(shell: Shell) -> Path:
    return shell.cache / "synthetic-llama-v1"


def test_a_task_of_which_all_was_trained_on_is_no_test(shell: Shell, tiny_run: Path, tmp_path: Path) -> None:
    ids = {entry["sha256"] for entry in read_results(tiny_run)["tasks"][0]["splits"]["train"]}
    rows = [i for i in open_source(source="synthetic").pool("", ("synthetic_1",)).rows if i.sha256 in ids]
    content = [{"question": i.question, "choices": i.choices, "answer": i.answer} for i in rows]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    data = ("--data.source", "local", "--data.path", tmp_path / "seen.jsonl", "--model.name", tiny_model(shell))
    adapter = tiny_run / "checkpoint_after_task2"
    found, _, said = evaluated(shell, tmp_path / "out", adapter, "--task", "seen", *data)
    assert found["tasks"][0]["held_out"] is None
    assert found["warnings"] == ["seen: 16 of 16 items were trained on, so this is no test"]
    assert "All 16 items were trained on, so this is no test." in said


def test_of_a_foreign_adapter_it_is_said_that_its_training_is_unknown(
    shell: Shell, tiny_run: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(tiny_run / "checkpoint_after_task1", tmp_path / "somewhere" / "adapter")
    content, _, said = evaluated(shell, tmp_path, adapter, "--task", "synthetic_1", "--data.source", "synthetic")
    assert content["run"] is None
    (warning,) = content["warnings"]
    assert "it is not known what this adapter was trained on" in warning
    assert warning in said
    assert "Test accuracy" not in said


def test_defined_tasks_are_evaluated(shell: Shell, llama_folder: Path, own_data: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"trees:\n  path: {own_data}\n")
    arguments = ("--task", "trees", "--data.definitions", tmp_path / "own.yaml", "--model_name", llama_folder)
    content, lines, _ = evaluated(shell, tmp_path, *arguments)
    assert content["tasks"][0]["accuracy"]["n"] == len(lines) == 9


def test_an_unwritable_folder_is_refused_before_anything_is_scored(
    shell: Shell, own_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    data = ("--data.source", "local", "--data.path", own_data, "--model_name", "/no/such/model")
    done = shell("evaluate", "--task", "trees", *data, "--output_dir", tmp_path / "file")
    assert "output.folder must be writable" in done.complaint
    done = shell("evaluate", "--task", "trees", *data, "--output_dir", tmp_path / "out")
    assert "/no/such/model" in done.complaint
    assert not list((tmp_path / "out").iterdir())


def test_an_older_evaluation_is_read() -> None:
    accuracy = {"correct": 1, "n": 2, "interval": None, "value": 0.5, "stderr": 0.5}
    loss = {"value": 1.0, "stderr": 0.1, "n": 2, "interval": None}
    old = {"name": "a", "n": 2, "shots": [], "shortened": 0, "accuracy": accuracy, "loss": loss} | {
        "letter_mass": 0.5, "seconds": 1.0,
    }  # fmt: skip
    pooled = {"value": 0.5, "stderr": 0.5, "n": 2}
    found = from_plain(TaskEvaluation, {"name": "a", "subjects": [old], "accuracy": pooled})
    assert found.trained is found.held_out is found.subjects[0].trained is None
    assert found.headline == found.accuracy


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "at least one task must be named"),
        (["--task", "oaks", "--limit", "0"], "must be a whole number from 1 to"),
        (["nowhere", "--task", "virology"], "nowhere"),
        (["--task", "virology", "--data.few_shots", "5"], "did you mean --data.few_shot?"),
    ],
)
def test_mistakes_end_in_one_line(shell: Shell, arguments: list[str], complaint: str) -> None:
    assert complaint in shell("evaluate", *arguments).complaint
