"""Losses, accuracy and letter mass from answer-position logits, against torch on whole rows of random logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm_forgetting.models.language.answer_statistics import SURFACES, AnswerStatistics
from llm_forgetting.models.language.batches import split_logits

VOCABULARY = 50


def random_case(n: int = 40, k: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float64 logits (n, vocabulary), letter ids (n, k) that differ from item to item, answers (n,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(n, VOCABULARY, dtype=torch.float64, generator=generator)
    letters = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:k] for _ in range(n)])
    return logits, letters, torch.randint(k, (n,), generator=generator)


def statistics_of(logits: torch.Tensor, letters: torch.Tensor, answers: torch.Tensor) -> AnswerStatistics:
    z, rest = split_logits(logits, letters)
    return AnswerStatistics(z.numpy(), rest.numpy(), answers.numpy())


@pytest.mark.parametrize("k", [2, 4, 5])
def test_losses_are_torch_cross_entropy(k: int) -> None:
    logits, letters, answers = random_case(k=k)
    statistics = statistics_of(logits, letters, answers)
    targets = letters.gather(1, answers[:, None])[:, 0]
    full = F.cross_entropy(logits, targets, reduction="none").numpy()
    np.testing.assert_allclose(statistics.losses, full, rtol=1e-12, atol=1e-12)
    four_way = F.cross_entropy(logits.gather(1, letters), answers, reduction="none").numpy()
    np.testing.assert_allclose(statistics.four_way_losses, four_way, rtol=1e-12, atol=1e-12)
    mass = logits.softmax(dim=1).gather(1, letters).sum(dim=1).numpy()
    np.testing.assert_allclose(statistics.letter_mass, mass, rtol=1e-12, atol=1e-15)


def test_split_logits_loses_nothing() -> None:
    logits, letters, _ = random_case()
    z, rest = split_logits(logits, letters)
    assert torch.equal(z, logits.gather(1, letters))
    torch.testing.assert_close(torch.logaddexp(z.logsumexp(1), rest), logits.logsumexp(1), rtol=1e-12, atol=1e-12)
    whole = zip(logits, letters.tolist(), strict=True)
    others = torch.stack([row[[i for i in range(VOCABULARY) if i not in ids]].logsumexp(0) for row, ids in whole])
    torch.testing.assert_close(rest, others, rtol=1e-12, atol=1e-12)


def test_items_with_fewer_options_are_padded_with_minus_infinity() -> None:
    logits, letters, _ = random_case(n=3, k=5)
    letters[0, 2:] = -1
    letters[1, 4:] = -1
    answers = torch.tensor([1, 3, 4])
    padded = statistics_of(logits, letters, answers)
    assert np.isneginf(padded.letter_logits).sum(axis=1).tolist() == [3, 1, 0]
    for row, k in enumerate((2, 4, 5)):
        alone = statistics_of(logits[row : row + 1], letters[row : row + 1, :k], answers[row : row + 1])
        for name in ("losses", "four_way_losses", "letter_mass", "correct"):
            np.testing.assert_allclose(getattr(padded, name)[row], getattr(alone, name)[0], rtol=1e-12)


def test_accuracy_takes_the_first_of_equal_letters() -> None:
    z = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 2.0, 2.0, 2.0], [-1.0, -2.0, -3.0, 5.0]])
    statistics = AnswerStatistics(z, np.zeros(4), np.array([0, 1, 1, 3]))
    assert statistics.predictions.tolist() == [0, 0, 1, 3]
    assert statistics.correct.tolist() == [True, False, True, True]
    assert statistics.surface("accuracy") == 0.75


def test_numbers_worked_by_hand() -> None:
    """Two letters of probability 1/2 and 1/4, the rest 1/4."""
    statistics = AnswerStatistics(np.log([[0.5, 0.25], [0.5, 0.25]]), np.log([0.25, 0.25]), np.array([0, 1]))
    np.testing.assert_allclose(statistics.losses, [np.log(2), np.log(4)], rtol=1e-14)
    np.testing.assert_allclose(statistics.four_way_losses, [np.log(1.5), np.log(3)], rtol=1e-14)
    np.testing.assert_allclose(statistics.letter_mass, [0.75, 0.75], rtol=1e-14)
    assert statistics.surface("loss") == pytest.approx(1.5 * np.log(2), rel=1e-14)
    assert statistics.surface("accuracy") == 0.5


def test_leading_axes_are_points_of_a_scan() -> None:
    rng = np.random.default_rng(0)
    z, rest, answers = rng.normal(size=(3, 2, 7, 4)), rng.normal(size=(3, 2, 7)), rng.integers(4, size=7)
    scan = AnswerStatistics(z, rest, answers)
    assert scan.losses.shape == scan.correct.shape == (3, 2, 7)
    for kind in SURFACES:
        surface = scan.surface(kind)
        assert surface.shape == (3, 2)
        for i in range(3):
            for j in range(2):
                single = AnswerStatistics(z[i, j], rest[i, j], answers).surface(kind)
                np.testing.assert_allclose(surface[i, j], single, rtol=1e-14)


def test_no_loss_is_ever_negative() -> None:
    rng = np.random.default_rng(1)
    for spread in (1e-3, 1.0, 30.0, 300.0):
        z = spread * rng.normal(size=(20_000, 4))
        rest = spread * rng.normal(size=20_000)
        statistics = AnswerStatistics(z, rest, rng.integers(4, size=20_000))
        assert statistics.losses.min() >= 0
        assert statistics.four_way_losses.min() >= 0
        assert (statistics.losses >= statistics.four_way_losses - 1e-9).all()
        assert statistics.letter_mass.max() <= 1


def test_a_certain_answer_costs_nothing() -> None:
    statistics = AnswerStatistics(np.array([[700.0, -700.0, -700.0, -700.0]]), np.array([-np.inf]), np.array([0]))
    assert statistics.losses.tolist() == [0.0]
    assert statistics.letter_mass.tolist() == [1.0]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_non_finite_logits_stay_non_finite(broken: float) -> None:
    """A diverged cell of a surface must show as such, and never as right; without a warning for every cell."""
    z = np.zeros((2, 3, 4))
    z[0, 1] = broken
    statistics = AnswerStatistics(z, np.zeros((2, 3)), np.array([0, 0, 0]))
    for values in (statistics.losses, statistics.four_way_losses, statistics.letter_mass):
        assert not np.isfinite(values[0, 1])
        assert np.isfinite(np.delete(values.reshape(-1), 1)).all()
    assert not statistics.correct[0, 1]
    assert np.isfinite(statistics.surface("loss")).tolist() == [False, True]


def test_one_broken_letter_or_rest_spoils_its_item_alone() -> None:
    z = np.zeros((3, 4))
    z[0, 2] = np.nan
    rest = np.array([0.0, np.nan, 0.0])
    losses = AnswerStatistics(z, rest, np.zeros(3, dtype=np.int64)).losses
    assert np.isnan(losses).tolist() == [True, True, False]


def test_an_impossible_answer_costs_infinitely_much() -> None:
    z = np.array([[-np.inf, 0.0, 0.0, 0.0]])
    statistics = AnswerStatistics(z, np.zeros(1), np.array([0]))
    assert statistics.losses.tolist() == [np.inf]
    assert statistics.correct.tolist() == [False]


def test_the_accuracy_of_a_point_that_is_not_a_number_is_none_at_all() -> None:
    z = np.array([[[1.0, 0.0]], [[np.nan, 0.0]]])
    accuracy = AnswerStatistics(z, np.zeros((2, 1)), np.array([0])).surface("accuracy")
    np.testing.assert_array_equal(accuracy, [1.0, np.nan])
