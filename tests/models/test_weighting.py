"""`data.weighting`: one definition of a mean loss in scores, training, products, surfaces, paths and records."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import adapter_of, load

from llm_forgetting.config.measurements import EvaluationConfig
from llm_forgetting.config.paths import fingerprint
from llm_forgetting.config.sections import DataConfig, ExperimentConfig, TrainingConfig, Weighting
from llm_forgetting.experiment.analysis import forecast, paths
from llm_forgetting.experiment.artifacts.item_records import item_records
from llm_forgetting.forgetting.paired_evaluation import task_changes
from llm_forgetting.forgetting.records import ItemRecord, weighted_losses
from llm_forgetting.forgetting.summary import score_table
from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.models.language.scoring import score
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.training.during import DuringScores
from llm_forgetting.training.fine_tuning import fine_tune

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTINGS: tuple[Weighting, ...] = ("token", "item")


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LanguageModel:
    return load(llama_folder)


def items(model: LanguageModel, weighting: Weighting) -> list[EncodedItem]:
    texts = (" a", " long answer of many", " two words", " b", " the end of it")
    made = [Completion(f"s/test/{n}", "s", f"{n}:", text) for n, text in enumerate(texts)]
    return encode(model.tokenizer, made, {}, 400, weighting)


def plain(model: LanguageModel, encoded: list[EncodedItem], weighting: Weighting) -> torch.Tensor:
    """The mean loss in a plain loop."""
    losses = []
    for item in encoded:
        ids = torch.tensor([[*item.input_ids, item.targets[-1]]])
        logits = model.peft_model(input_ids=ids).logits[0, list(item.places)]
        losses.append(F.cross_entropy(logits.double(), torch.tensor(item.targets), reduction="none"))
    return torch.cat(losses).mean() if weighting == "token" else torch.stack([each.mean() for each in losses]).mean()


def statistics(weights: list[float] | None) -> AnswerStatistics:
    """Three items of 1, 2 and 4 tokens with losses ln 2, ln 4 twice and ln 8 four times."""
    rest = np.log([1.0, 3, 3, 7, 7, 7, 7])
    given = None if weights is None else np.array(weights)
    return AnswerStatistics(np.zeros((7, 1)), rest, np.full(7, -1), np.array([1, 2, 4]), weights=given)


def test_closed_form() -> None:
    by_token, by_item = statistics(None), statistics([1, 1 / 2, 1 / 4])
    ln2 = float(np.log(2))
    for found, mean, last_two in ((by_token, 17 / 7, 16 / 6), (by_item, 2.0, 2.5)):
        assert found.losses == pytest.approx([ln2, 2 * ln2, 3 * ln2])
        for value in (found.mean_loss, found.surface("loss"), found.weighted_losses.mean()):
            assert float(value) == pytest.approx(mean * ln2)
        assert float(found.mean_loss_of(np.array([False, True, True]))) == pytest.approx(last_two * ln2)
        assert float(found.of(slice(1, 3)).mean_loss) == pytest.approx(last_two * ln2)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_measured_loss_is_the_plain_loops(model: LanguageModel, weighting: Weighting) -> None:
    encoded = items(model, weighting)
    update = model.adapter_factors()
    with torch.no_grad():
        expected = float(plain(model, encoded, weighting))
    for packed in (True, False):
        assert float(score(model, encoded, 2, packed=packed).mean_loss) == pytest.approx(expected, abs=1e-5)
    objective = LandscapeObjective(model, [("one", encoded[:2]), ("two", encoded[2:])], 16)
    with objective.evaluating() as values_at:
        (values,) = values_at([update])
    with torch.no_grad():
        parts = [float(plain(model, part, weighting)) for part in (encoded[:2], encoded[2:])]
    assert objective.losses(values).tolist() == pytest.approx(parts, abs=1e-5)
    assert forecast._loss_at(model, update, encoded, 2) == pytest.approx(expected, abs=1e-5)
    profiles = score(model, encoded, 2)
    stacked = replace(profiles, letter_logits=profiles.letter_logits[None], rest=profiles.rest[None])
    point = paths._best_compromise([("one", encoded)], np.array([0.0]), [stacked], None)
    chosen = paths.selection_mask(5, 5)
    with torch.no_grad():
        picked = [item for item, choice in zip(encoded, chosen, strict=True) if choice]
        assert point.mean_loss_on_selection == pytest.approx(float(plain(model, picked, weighting)), abs=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_products_are_of_the_same_loss(model: LanguageModel, weighting: Weighting) -> None:
    encoded, factors = items(model, weighting), model.adapter_factors()
    step = type(factors).combine([(0.3, factors)])
    found = []
    for method in ("tangent", "graph"):
        with products_at(model, encoded, factors, micro_batch=2, method=method) as products:
            derivatives = products.along_update(step)
        found.append((derivatives.loss, derivatives.slope, derivatives.curvature))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    with torch.no_grad():
        assert found[1][0] == pytest.approx(float(plain(model, encoded, weighting)), abs=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(5, 1), (2, 3)])
def test_a_step_of_training_is_the_plain_loops(
    llama_folder: Path, tmp_path: Path, weighting: Weighting, batch_size: int, accumulation: int
) -> None:
    model = load(llama_folder)
    encoded, before = items(model, weighting), adapter_of(model)
    parameters = [parameter for parameter in model.peft_model.parameters() if parameter.requires_grad]
    loss = plain(model, encoded, weighting)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
    config = TrainingConfig(
        batch_size=batch_size, gradient_accumulation_steps=accumulation, num_epochs=1, learning_rate=0.1,
        optimizer="sgd", lr_scheduler="constant", warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1e9,
    )  # fmt: skip
    (entry,) = fine_tune(model, encoded, config, stream="task1", scratch=tmp_path)
    assert entry.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(adapter_of(model) - before, -0.1 * gradient.float(), atol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_scores_during_a_training_give_the_same_mean(
    model: LanguageModel, tmp_path: Path, weighting: Weighting
) -> None:
    encoded = items(model, weighting)
    during = DuringScores(model, {"s": encoded}, EvaluationConfig(during=1), tmp_path, probes={}).follow(1)
    for step in (0, 1):
        during._score(step)
    with torch.no_grad():
        expected = float(plain(model, encoded, weighting))
    assert during.record().tasks[0].loss[1].mean() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_records_give_the_same_mean(model: LanguageModel, weighting: Weighting) -> None:
    encoded = items(model, weighting)
    records: list[ItemRecord] = []
    for checkpoint in ("initial", "after_task1"):
        records += item_records(checkpoint, "s", "test", encoded, score(model, encoded, None), decode=model.decode)
    with torch.no_grad():
        expected = float(plain(model, encoded, weighting))
    assert weighted_losses(records[:5]).mean() == pytest.approx(expected, abs=1e-5)
    table = score_table(records, ["s"], "test", ["initial", "after_task1"])
    assert table.matrix("loss")[1, 0] == pytest.approx(expected, abs=1e-5)
    worse = [replace(record, loss=record.loss + number) for number, record in enumerate(records[5:])]
    (change,) = task_changes({"s": records[:5]}, {"s": worse}, seed=0)
    shares = np.array([len(item.targets) for item in encoded]) if weighting == "token" else np.ones(5)
    assert change.loss.value == pytest.approx(float(shares @ np.arange(5) / shares.sum()), abs=1e-6)
    assert all((record.weight is None) == (weighting == "token") for record in records)


def test_the_default_keeps_older_fingerprints() -> None:
    default = ExperimentConfig()
    assert fingerprint(default) != fingerprint(replace(default, data=DataConfig(weighting="item")))
