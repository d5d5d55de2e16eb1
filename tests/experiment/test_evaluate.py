"""`llm-forgetting evaluate`: whole test splits, as lm-evaluation-harness measures them."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from runs import Shell
from tiny_models import fill_adapter, load, make_items

from llm_forgetting.config.sections import DataConfig, LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.adapter_evaluation import subject_items
from llm_forgetting.forgetting.intervals import pooled_stderr, proportion
from llm_forgetting.models.language.batches import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import merged, score
from llm_forgetting.tasks.sources import LoadedSource, open_source
from llm_forgetting.tasks.task import Item

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


def test_the_test_rows_are_scored_in_file_order_and_validation_rows_are_not() -> None:
    part = subject_items(source(), "trees", DataConfig(few_shot=2), None)
    assert [item.id for item in part.items] == [f"trees/test/{n}" for n in range(5)]
    assert [item.id for item in part.shots] == ["trees/dev/0", "trees/dev/1"]
    assert len(subject_items(source(), "trees", DataConfig(), 2).items) == 2


def test_a_source_without_splits_is_scored_whole() -> None:
    assert len(subject_items(source(split="rows"), "trees", DataConfig(), None).items) == 7


def test_duplicates_stay_in() -> None:
    twice = (Item("trees/test/0", "trees", "same", ("p", "q"), 0), Item("trees/test/1", "trees", "same", ("p", "q"), 0))
    found = LoadedSource("trees", {"trees": twice}, {})
    assert len(subject_items(found, "trees", DataConfig(), None).items) == 2


def test_too_few_examples_end_in_one_line() -> None:
    with pytest.raises(UserError, match=r"few_shot=4 needs as many few-shot rows of trees, this source has 3"):
        subject_items(source(), "trees", DataConfig(few_shot=4), None)


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
    part = subject_items(open_source(source="local", path=str(MMLU)), subject, DataConfig(few_shot=5), 8)
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


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "at least one task must be named"),
        (["--task", "oaks", "--limit", "0"], "must be a whole number of at least 1"),
        (["nowhere", "--task", "virology"], "nowhere"),
        (["--task", "virology", "--data.few_shots", "5"], "did you mean --data.few_shot?"),
    ],
)
def test_mistakes_end_in_one_line(shell: Shell, arguments: list[str], complaint: str) -> None:
    assert complaint in shell("evaluate", *arguments).complaint
