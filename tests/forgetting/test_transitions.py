"""Tasks that are never trained on: their changes from items alone, transitions, and what is said of them."""

from collections.abc import Sequence

import numpy as np
import pytest

from llm_forgetting.files import encode
from llm_forgetting.forgetting.intervals import PairedProportionChange, paired_proportion_change
from llm_forgetting.forgetting.paired_evaluation import task_changes
from llm_forgetting.forgetting.probes import probes, probes_lost
from llm_forgetting.forgetting.records import ItemRecord, SampleRecord
from llm_forgetting.forgetting.summary import summarise
from llm_forgetting.forgetting.transitions import transitions

CHECKPOINTS = ("initial", "after_task1", "after_task2")


def asked(checkpoint: str, right: Sequence[int], task: str = "maths", split: str = "probe") -> list[ItemRecord]:
    """Questions with four options whose loss is 1, or 0.5 where they are right."""
    return [
        ItemRecord(
            checkpoint,
            task,
            split,
            f"{task}/{n}",
            task,
            "A",
            "A",
            bool(one),
            1 - one / 2,
            np.zeros(4),
            0.0,  # type: ignore[arg-type]
        )
        for n, one in enumerate(right)
    ]


def test_transitions_by_hand() -> None:
    # 6 right both times, 3 lost, 1 gained, 10 wrong both times: a = 9 / 20, b = 7 / 20.
    before = [1] * 9 + [0] * 11
    after = [1] * 6 + [0] * 3 + [1] + [0] * 10
    of_four = transitions(before, after, [4] * 20)
    by_chance = (11 / 20) * (13 / 20) / 3
    assert (of_four.lost.count, of_four.gained.count, of_four.n) == (3, 1, 20)
    assert of_four.lost.by_chance == pytest.approx(by_chance)
    assert of_four.lost.value == pytest.approx(3 / 20 - by_chance)
    assert of_four.gained.value == 0  # 1 / 20 is less than guessing would turn
    assert of_four.lost.interval is None
    free = transitions(before, after, [0] * 20)
    assert (free.lost.value, free.gained.value, free.lost.by_chance) == (3 / 20, 1 / 20, 0)
    mixed = transitions(before, after, [4] * 10 + [0] * 10)
    assert mixed.lost.by_chance == pytest.approx(by_chance / 2)
    with pytest.raises(ValueError, match="0 options"):
        transitions([1], [0], [1])
    with pytest.raises(ValueError, match="same items"):
        transitions([1], [0, 1], [2, 2])


def test_what_only_guesses_loses_nothing() -> None:
    """Guessing turns (k - 1) / k^2 of the items either way; what is known and lost is what stays, minus its lucky guesses."""
    rng = np.random.default_rng(0)
    n, k = 200_000, 4
    guessed = rng.random((2, n)) < 1 / k
    found = transitions(guessed[0], guessed[1], [k] * n)
    assert found.lost.share == pytest.approx((k - 1) / k**2, abs=0.003)
    assert found.lost.value == pytest.approx(0, abs=0.003)
    known = np.arange(n) < n // 2
    lost = np.arange(n) < n // 5
    before, after = known | guessed[0], (known & ~lost) | guessed[1]
    found = transitions(before, after, [k] * n)
    # Of the lost, 1 / k are guessed right again; to items that are wrong before, those add nothing.
    unknown_before, unknown_after = 1 / 2, 1 / 2 + 1 / 5
    turned = (1 / 5 + unknown_before / k) * (1 - 1 / k)
    chance = unknown_before * unknown_after * (1 - 1 / k) / k
    assert found.lost.share == pytest.approx(turned, abs=0.003)
    assert found.lost.by_chance == pytest.approx(chance, abs=0.003)
    assert found.lost.value == pytest.approx(turned - chance, abs=0.004)


def test_the_interval_covers() -> None:
    """Nominal 95%, over 300 samples of 40 items of which nothing, and of which a third, was lost."""
    rng = np.random.default_rng(1)
    for cells in ((0.3, 0.15, 0.15, 0.4), (0.2, 0.4, 0.05, 0.35)):
        both, lost, gained, neither = cells
        true = max(0.0, lost - (gained + neither) * (lost + neither) / 3)
        drawn = rng.choice(4, size=(300, 40), p=cells)
        hits = 0
        for sample in drawn:
            interval = transitions(sample <= 1, (sample == 0) | (sample == 2), [4] * 40).lost.interval
            assert interval is not None
            hits += interval.low <= true <= interval.high
        assert both > 0
        assert hits >= 275


def test_a_probes_changes_are_those_of_its_items() -> None:
    rng = np.random.default_rng(2)
    right = {
        name: (rng.random(60) < share).astype(int).tolist()
        for name, share in zip(CHECKPOINTS, (0.9, 0.6, 0.3), strict=True)
    }
    records = [item for name in CHECKPOINTS for item in asked(name, right[name])]
    trained = [item for name in CHECKPOINTS for item in asked(name, right[name], "own", "test")]
    (probe,) = probes([*trained, *records], CHECKPOINTS, seed=0) or ()
    assert (probe.name, probe.measure, probe.n, probe.chance) == ("maths", "accuracy", 60, 0.25)
    assert [probe.score[name].value for name in CHECKPOINTS] == [np.mean(right[name]) for name in CHECKPOINTS]
    assert probe.loss["initial"].value == pytest.approx(1 - np.mean(right["initial"]) / 2)
    assert [change.start for change in probe.changes] == ["initial", "after_task1"]
    for change in probe.changes:
        assert change.score == paired_proportion_change(
            right[change.start], right["after_task2"], clusters=["maths"] * 60
        )
        assert change.transitions == transitions(right[change.start], right["after_task2"], [4] * 60)
        assert change.loss is not None
        assert change.loss.value == pytest.approx(-change.score.value / 2)
    said = probes_lost([probe])
    assert said.startswith("What was never trained on was lost too: accuracy on maths from 0.")
    assert probes(trained, CHECKPOINTS, seed=0) is None


def test_a_pair_of_checkpoints_has_transitions_of_all_its_items() -> None:
    before, after = [1] * 30 + [0] * 20, [1] * 10 + [0] * 40
    (change,) = task_changes({"maths": asked("A", before)}, {"maths": asked("B", after)}, seed=0)
    assert change.transitions == transitions(before, after, [4] * 50)
    assert change.transitions.lost.count == change.accuracy.only_before == 20


def test_the_answer_begins_with_what_was_lost_elsewhere() -> None:
    trained = [
        item
        for name in CHECKPOINTS
        for task in ("first", "second")
        for split in ("train", "test")
        for item in asked(name, [1] * 40, task, split)
    ]
    elsewhere = [
        item
        for name, right in zip(CHECKPOINTS, ([1] * 60, [1] * 60, [0] * 30 + [1] * 30), strict=True)
        for item in asked(name, right)
    ]
    alone = summarise(trained, ["first", "second"], seed=0)
    beside = summarise([*trained, *elsewhere], ["first", "second"], seed=0)
    assert beside.answer == f"{probes_lost(beside.probes or ())} {alone.answer}"
    assert beside.answer.startswith("What was never trained on was lost too: accuracy on maths from 1.00 to 0.50")
    assert alone.probes is None
    assert encode(beside.forgetting) == encode(alone.forgetting)


def test_only_a_loss_that_is_shown_is_said() -> None:
    gained = [
        item
        for name, right in zip(CHECKPOINTS, ([0] * 60, [0] * 60, [1] * 60), strict=True)
        for item in asked(name, right)
    ]
    few = [
        item
        for name, right in zip(CHECKPOINTS, ([1] * 20, [1] * 20, [0] * 20), strict=True)
        for item in asked(name, right)
    ]
    for records in (gained, few):
        assert probes_lost(probes(records, CHECKPOINTS, seed=0) or ()) == ""
    # Six of 60 lost: p = 0.03 alone, and 0.06 beside another probe.
    ends = ([1] * 60, [1] * 60, [0] * 6 + [1] * 54)
    alone = [item for name, right in zip(CHECKPOINTS, ends, strict=True) for item in asked(name, right)]
    beside = [item for name in CHECKPOINTS for item in asked(name, [1, 0] * 30, "words")]
    assert probes_lost(probes(alone, CHECKPOINTS, seed=0) or ())
    assert probes_lost(probes([*alone, *beside], CHECKPOINTS, seed=0) or ()) == ""
    with pytest.raises(ValueError, match="must hold the items of probe maths"):
        probes(alone[:-1], CHECKPOINTS, seed=0)


def test_options_that_are_texts_can_be_guessed_and_other_completions_cannot() -> None:
    def completions(checkpoint: str, options: int) -> list[ItemRecord]:
        compared = np.zeros(options) if options else None
        return [
            ItemRecord(
                checkpoint, "words", "probe", str(n), "words", "a", "a", n % 2 == 0, float(n), tokens=1 + n % 3,
                weight=1 / (1 + n % 3), log_likelihoods=compared,
            )
            for n in range(40)
        ]  # fmt: skip

    for options, measure, guessed in ((3, "accuracy", 1 / 3), (0, "exact match", 0.0)):
        (probe,) = (
            probes([one for name in CHECKPOINTS for one in completions(name, options)], CHECKPOINTS, seed=0) or ()
        )
        assert (probe.measure, probe.chance) == (measure, pytest.approx(guessed))
        assert probe.loss["initial"].value == pytest.approx(np.mean(range(40)))  # every item weighs the same
        turned = probe.changes[0].transitions
        assert turned is not None
        assert turned.lost.by_chance == pytest.approx(0.25 / (options - 1) if options else 0)


def test_a_probe_per_metric_of_the_harness() -> None:
    def sample(checkpoint: str, n: int, acc: float, f1: float) -> SampleRecord:
        return SampleRecord(checkpoint, "harness:own", "harness", str(n), "own", f"hash{n}", {"acc": acc, "f1": f1}, 4)

    records = [sample(name, n, float(n % 2), n / 50) for name in CHECKPOINTS for n in range(50)]
    acc, f1 = probes(records, CHECKPOINTS, seed=0) or ()
    assert (acc.measure, acc.chance, acc.loss) == ("acc", 0.25, {})
    assert isinstance(acc.changes[0].score, PairedProportionChange)
    assert (f1.measure, f1.chance, f1.changes[0].transitions) == ("f1", None, None)
    assert f1.changes[0].score.value == 0
    with pytest.raises(ValueError, match="must hold the items"):
        probes([*records[:-1], sample(CHECKPOINTS[-1], 50, 1.0, 1.0)], CHECKPOINTS, seed=0)
