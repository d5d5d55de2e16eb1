"""The landscape objective: what one vector per point says about the items of all tasks, and the same from several at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import load, make_encoded

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis.landscape import analyse_landscape
from llm_forgetting.landscape.gauge import Factors, canonicalise
from llm_forgetting.landscape.nodes import CachedEvaluator, Journal
from llm_forgetting.landscape.spaces import AdapterSpace, WeightSpace
from llm_forgetting.landscape.spectral import Fit
from llm_forgetting.models.language import objective as landscape_objective
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.models.language.packing import CannotPackError
from llm_forgetting.models.language.scoring import score

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LanguageModel:
    return load(llama_folder)


@pytest.fixture(scope="module")
def groups(model: LanguageModel) -> list[list[EncodedItem]]:
    """Three tasks of different sizes; items with 2 to 5 options."""
    items = make_encoded(model, 9, options=[4, 2, 5, 3])
    return [items[:5], items[5:6], items[6:]]


def named(groups: list[list[EncodedItem]]) -> list[tuple[str, list[EncodedItem]]]:
    return [(f"task {n}", group) for n, group in enumerate(groups)]


def points(model: LanguageModel, ranks: Sequence[int] = (2, 3, 1, 2, 2)) -> list[dict[str, Factors]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: Factors(
                B=0.1 * torch.randn(len(pair.B), rank, generator=generator),
                A=torch.randn(rank, pair.A.shape[1], generator=generator),
            )
            for name, pair in model.adapter_factors().items()
        }
        for rank in ranks
    ]


def test_statistics_are_each_tasks_own_scores(model: LanguageModel, groups: list[list[EncodedItem]]) -> None:
    objective = LandscapeObjective(model, named(groups), 4)
    with objective.evaluating() as values_at:
        (values,) = values_at([model.adapter_factors()])
    assert values.shape == (9 * (5 + 1),)
    for found, group in zip(objective.statistics(values), groups, strict=True):
        expected, k = score(model, group, 4), max(len(item.letter_ids) for item in group)
        np.testing.assert_allclose(found.letter_logits[:, :k], expected.letter_logits, atol=1e-5)
        assert np.isneginf(found.letter_logits[:, k:]).all()
        np.testing.assert_allclose(found.rest, expected.rest, atol=1e-5)
        np.testing.assert_array_equal(found.answers, [item.item.answer for item in group])
    losses = [score(model, group, 4).losses.mean() for group in groups]
    np.testing.assert_allclose(objective.losses(values), losses, atol=1e-5)


def test_leading_axes_are_kept(model: LanguageModel, groups: list[list[EncodedItem]]) -> None:
    objective = LandscapeObjective(model, named(groups), 4)
    values = np.random.default_rng(0).normal(size=(3, 2, 9 * 6))
    assert objective.losses(values).shape == (3, 2, 3)
    for found, size in zip(objective.statistics(values), (5, 1, 3), strict=True):
        assert found.letter_logits.shape == (3, 2, size, 5)
        assert found.rest.shape == (3, 2, size)
    np.testing.assert_array_equal(objective.losses(values)[2, 1], objective.losses(values[2, 1]))
    # item 5 is the only one of the second task: its five letters and its rest
    z, rest, answer = values[2, 1, 25:30], values[2, 1, 45 + 5], groups[1][0].item.answer
    expected = np.log(np.exp(z).sum() + np.exp(rest)) - z[answer]
    assert objective.losses(values)[2, 1, 1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("together", [2, 3, 8])
def test_points_that_share_a_forward_are_points_one_by_one(
    model: LanguageModel, groups: list[list[EncodedItem]], together: int
) -> None:
    asked = points(model)
    made = []
    for rows in (1, together):
        with LandscapeObjective(model, named(groups), 4, rows).evaluating() as values_at:
            made.append(np.stack(list(values_at(point for point in asked))))
    finite = np.isfinite(made[0])
    np.testing.assert_array_equal(np.isfinite(made[1]), finite)
    np.testing.assert_allclose(made[1][finite], made[0][finite], atol=1e-5)
    assert np.ptp(made[0][:, -1]) > 0.1


def test_several_points_per_forward_need_a_model_that_packs(
    model: LanguageModel, groups: list[list[EncodedItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = points(model)
    with LandscapeObjective(model, named(groups), 4).evaluating() as values_at:
        expected = np.stack(list(values_at(asked)))
    monkeypatch.setattr(model, "supports_packing", False)
    with LandscapeObjective(model, named(groups), 4, 3).evaluating() as values_at:
        found = np.stack(list(values_at(asked)))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], atol=1e-5)


def test_points_cannot_share_a_forward_of_items_that_cannot_be_packed(
    model: LanguageModel, groups: list[list[EncodedItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise CannotPackError("attention with a sliding window")

    monkeypatch.setattr(landscape_objective, "score_points", refuse)
    with (
        LandscapeObjective(model, named(groups), 4, 3).evaluating() as values_at,
        pytest.raises(UserError, match="a sliding window forbids it; set landscape"),
    ):
        next(values_at(points(model)))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_model_is_as_before_afterwards(model: LanguageModel, groups: list[list[EncodedItem]], rows: int) -> None:
    before = {name: part.clone() for name, part in model.peft_model.state_dict().items()}
    objective = LandscapeObjective(model, named(groups), 4, rows)

    def interrupted() -> Iterator[dict[str, Factors]]:
        yield from points(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), objective.evaluating() as values_at:
        list(values_at(interrupted()))
    assert all(torch.equal(part, before[name]) for name, part in model.peft_model.state_dict().items())


def test_the_batches_are_the_same_at_every_point(model: LanguageModel, groups: list[list[EncodedItem]]) -> None:
    """Asked again after others, a point gives the same bits."""
    a, b, *_ = points(model)
    with LandscapeObjective(model, named(groups), 4).evaluating() as values_at:
        first, _, again = values_at([a, b, a])
    np.testing.assert_array_equal(first, again)


def test_adapter_and_weight_space_agree_on_the_centre(
    model: LanguageModel, groups: list[list[EncodedItem]], tmp_path: Path
) -> None:
    adapter = AdapterSpace(canonicalise(model.adapter_factors()))
    weight = WeightSpace(model.adapter_factors(), model.weight_row_norms())
    objective = LandscapeObjective(model, named(groups), 4)
    found = []
    with objective.evaluating() as values_at:
        for family, space in (("adapter", adapter), ("weight", weight)):
            (d,) = space.directions(0, 1, 0.1 * space.norm)
            nodes = CachedEvaluator(values_at, Journal(tmp_path / family))
            places = np.array([[0.0], [1.0]])
            found.append(objective.losses(nodes.at(family, places, lambda row, s=space, d=d: s.point([(row[0], d)]))))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    assert np.abs(found[0][1] - found[1][1]).max() > 1e-3


def test_a_tasks_loss_is_that_of_its_own_columns(model: LanguageModel, groups: list[list[EncodedItem]]) -> None:
    objective = LandscapeObjective(model, named(groups), 4)
    with objective.evaluating() as values_at:
        values = np.stack(list(values_at(points(model, (2, 3)))))
    columns = [objective.columns(index) for index in range(len(groups))]
    assert sorted(np.concatenate(columns)) == list(range(values.shape[1]))
    for index, own in enumerate(columns):
        assert np.array_equal(objective.loss(index, values[:, own]), objective.losses(values)[:, index])


def test_the_curvature_of_a_task_costs_its_own_items(
    model: LanguageModel, groups: list[list[EncodedItem]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of points are read off a fit for it: of all items they would cost K^2 for K tasks."""
    widths: list[int] = []
    whole = Fit.__call__

    def counted(fit: Fit, places: np.ndarray) -> np.ndarray:
        if len(places) > 2000:
            widths.append(fit.coefficients.shape[1])
        return whole(fit, places)

    monkeypatch.setattr(Fit, "__call__", counted)
    config = LandscapeConfig(max_evaluations=23, resolution=9, directions=2, self_test_items=2)
    analyse_landscape(model, named(groups), config, reference_norm=None, advance=lambda steps, text: None)
    assert widths == [len(group) * (5 + 1) for group in groups for _ in ("the fit", "the one before")]
