"""What kind of forgetting it was: hand-worked cases, and models whose habit or knowledge is known."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llm_forgetting.files import encode_lines, to_plain
from llm_forgetting.forgetting.records import ItemRecord, Line, PassageRecord, SpuriousForgetting, TextDrift
from llm_forgetting.forgetting.spurious import (
    letter_counts,
    options_by_rotation,
    prior_corrected,
    recovery,
    rotations,
    spurious_forgetting_probes,
)
from llm_forgetting.forgetting.summary import chance, spurious_forgetting, summarise, text_drift
from llm_forgetting.forgetting.verdict import letters_learnt


def record(logits: Sequence[float], answer: str, rotated: Sequence[Sequence[float]] = (), n: int = 0) -> ItemRecord:
    predicted = "ABCDE"[int(np.argmax(logits))]
    return ItemRecord(
        checkpoint="after_task1",
        task="trees",
        split="train",
        id=f"trees/test/{n}",
        subject="trees",
        answer=answer,
        predicted=predicted,
        correct=predicted == answer,
        loss=1.0,
        letter_logits=np.array(logits, dtype=float),
        rest=0.0,
        rotated_letter_logits=np.array(rotated, dtype=float) if rotated else None,
    )


def habit_and_knowledge(
    n: int, *, habit: Sequence[float], knowledge: float, seed: int = 0, options: int = 4
) -> list[ItemRecord]:
    """Items answered by a preference for letters plus `knowledge` for the right option, wherever it stands."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(n):
        answer = int(rng.integers(options))
        noise = rng.normal(size=options)  # belongs to the options, so it moves with them

        def asked(shift: int, answer: int = answer, noise: Any = noise) -> list[float]:
            by_option = knowledge * (np.arange(options) == answer) + noise
            return list(np.array(habit) + [by_option[(i + shift) % options] for i in range(options)])

        rotated = [asked(shift) for shift in range(1, options)]
        made.append(record(asked(0), "ABCDE"[answer], rotated, row))
    return made


def test_letters_are_counted_also_those_that_never_occur() -> None:
    found = letter_counts([record([2, 1, 0, 0], "A"), record([2, 1, 0, 0], "B"), record([0, 3, 0, 0], "B")])
    assert found.answered == {"A": 2, "B": 1, "C": 0, "D": 0}
    assert found.right == {"A": 1, "B": 2, "C": 0, "D": 0}
    assert found.distance == pytest.approx(1 / 3)


def test_the_prior_is_taken_out_by_hand() -> None:
    """Two items; the letters' shares are (0.9, 0.1) and (0.6, 0.4), so the prior is (0.75, 0.25)."""
    given = [record(np.log([0.9, 0.1]).tolist(), "A"), record(np.log([0.6, 0.4]).tolist(), "B")]
    assert [item.correct for item in given] == [True, False]
    assert 0.9 / 0.75 > 0.1 / 0.25
    assert 0.6 / 0.75 < 0.4 / 0.25
    assert prior_corrected(given).tolist() == [True, True]


def test_a_constant_of_an_items_logits_changes_no_correction() -> None:
    given = habit_and_knowledge(30, habit=[1, 0, 0, 0], knowledge=1.0)
    moved = [replace(item, letter_logits=item.letter_logits + 7.0 * n) for n, item in enumerate(given)]
    assert prior_corrected(given).tolist() == prior_corrected(moved).tolist()


def test_items_with_other_numbers_of_options_have_priors_of_their_own() -> None:
    four = habit_and_knowledge(20, habit=[3, 0, 0, 0], knowledge=2.0)
    two = habit_and_knowledge(20, habit=[0, 3], knowledge=2.0, options=2)
    together = prior_corrected([*four, *two])
    assert together.tolist() == [*prior_corrected(four), *prior_corrected(two)]


def test_option_probabilities_are_put_back_in_their_places() -> None:
    """Three options p, q, r; the model always gives p 0.7, q 0.2, r 0.1, whichever letters they have."""
    p, q, r = np.log([0.7, 0.2, 0.1])
    turned = record([p, q, r], "A", [[q, r, p], [r, p, q]])
    np.testing.assert_allclose(options_by_rotation(turned), [[p, q, r]] * 3)
    found = rotations([turned])
    assert found is not None
    assert (found.n, found.mean, found.summed.value, found.consistent.value) == (1, 1.0, 1.0, 1.0)


def test_a_model_that_always_says_a() -> None:
    logits = [5.0, 0.0, 0.0, 0.0]
    given = [record(logits, answer, [logits] * 3, n) for n, answer in enumerate("AABCD" * 8)]
    found = spurious_forgetting_probes(given)
    assert found.accuracy.value == 0.4
    assert found.letters.answered == {"A": 40, "B": 0, "C": 0, "D": 0}
    assert found.rotations is not None
    assert found.rotations.mean == 0.25  # the answer is at A in one rotation of four
    assert found.rotations.consistent.value == 0.0


def letters_by_heart(n: int) -> list[ItemRecord]:
    """Items that are answered with the letter that was right in training, wherever the options are."""
    logits = [[5.0 * (letter == answer) for letter in "ABCD"] for answer in "ABCD"]
    return [record(logits[row % 4], "ABCD"[row % 4], [logits[row % 4]] * 3, row) for row in range(n)]


def test_the_answer_says_where_letters_and_not_answers_were_learnt() -> None:
    def said(items: list[ItemRecord]) -> str:
        probes = {name: spurious_forgetting_probes(items) for name in ("after_task1", "after_task2")}
        return letters_learnt({"trees": SpuriousForgetting(probes, None)}, {"trees": chance({"after_task1": items})})

    assert said(letters_by_heart(40)) == (
        "With the options rotated the model answers at chance (0.25 on trees, guessing 0.25): it learnt letters, not answers."
    )
    assert said(letters_by_heart(39)) == ""  # too few for an interval
    assert said(habit_and_knowledge(40, habit=[0, 0, 0, 0], knowledge=6.0)) == ""
    assert said([replace(item, rotated_letter_logits=None) for item in letters_by_heart(40)]) == ""
    guessed = [replace(item, correct=n % 4 == 0) for n, item in enumerate(letters_by_heart(40))]
    assert said(guessed) == ""  # nothing was learnt as asked


def test_that_sentence_stands_first_in_the_answer_of_a_run() -> None:
    rows: list[Line] = [
        replace(item, checkpoint=checkpoint, task=task, split=split)
        for checkpoint in ("initial", "after_task1", "after_task2")
        for task in ("trees", "birds")
        for split in ("train", "test")
        for item in letters_by_heart(40)
    ]
    assert summarise(rows, ("trees", "birds"), seed=0).answer.startswith(
        "With the options rotated the model answers at"
    )


@pytest.mark.slow
def test_a_changed_habit_is_spurious_and_lost_knowledge_is_not() -> None:
    """The same plain drop, made by a strong preference for C or by knowing nothing."""
    before = spurious_forgetting_probes(habit_and_knowledge(400, habit=[0, 0, 0, 0], knowledge=6.0))
    habit = spurious_forgetting_probes(habit_and_knowledge(400, habit=[0, 0, 9, 0], knowledge=6.0))
    ignorant = spurious_forgetting_probes(habit_and_knowledge(400, habit=[0, 0, 0, 0], knowledge=0.0))
    assert before.accuracy.value > 0.98
    for after, known in ((habit, True), (ignorant, False)):
        assert after.accuracy.value < 0.5
        assert after.rotations is not None
        back = (after.prior_corrected.value, after.rotations.summed.value)
        assert all(value > 0.85 for value in back) if known else all(value < 0.35 for value in back)
    assert habit.letters.distance > 0.5
    assert ignorant.letters.distance < 0.1


def test_without_rotations_the_other_probes_stand() -> None:
    found = spurious_forgetting_probes([record([1, 0, 0, 0], "A"), record([0, 1, 0, 0], "A")])
    assert found.rotations is None
    assert found.accuracy.value == 0.5


def test_recovery_counts_only_items_that_were_not_learnt_again() -> None:
    def scored(right: str) -> list[ItemRecord]:
        return [record([1, 0] if mark == "x" else [0, 1], "A", n=n) for n, mark in enumerate(right)]

    tuned, last = scored("xxxxxxxxx."), scored("x.........")
    again = scored("x.xx......")[:8]
    found = recovery(tuned, last, again, [], items=2)
    assert found.items == 2
    assert {name: entry.correct for name, entry in found.accuracy.items()} == {"tuned": 8, "last": 1, "recovered": 3}
    assert found.accuracy["last"].n == 8
    assert found.share == pytest.approx(2 / 7)
    assert (found.forgotten.only_before, found.recovered.only_after) == (7, 2)
    control = recovery(tuned, last, again, scored(".......x"), items=2)
    assert control.accuracy["fresh"].correct == 1


def test_nothing_lost_has_no_share() -> None:
    same = [record([1, 0], "A")]
    assert recovery(same, same, same, [], items=1).share is None


# Summaries


def run_of_two() -> list[Line]:
    """Two tasks, three checkpoints, two items each, three recovered, passages of text."""
    rows: list[Line] = []
    for checkpoint in ("initial", "after_task1", "after_task2"):
        for task in ("trees", "birds"):
            for split in ("train", "test"):
                for n in range(4):
                    made = record([n, 1.5, 0, 0], "A", n=n)
                    rows.append(replace(made, checkpoint=checkpoint, task=task, split=split))
        for n in range(3):
            loss = {"initial": 2.0, "after_task1": 2.0 + 0.1 * n, "after_task2": 2.5 + 0.1 * n}[checkpoint]
            rows.append(PassageRecord(checkpoint, "text", f"passage/{n}", 9, loss))
    again = [record([n, 0, 0, 0], "A", n=n) for n in range(1, 4)]
    return [*rows, *(replace(made, checkpoint="recovered_task1") for made in again)]


def test_a_summary_needs_the_lines_of_items_jsonl_alone_and_leaves_them_as_they_are() -> None:
    given = run_of_two()
    before = encode_lines(given)
    summary = summarise(given, ("trees", "birds"), seed=0)
    assert encode_lines(given) == before
    assert summary.forgetting.train.accuracy.cells[0][0].n == 4
    assert list(summary.spurious) == ["trees"]
    trees = summary.spurious["trees"]
    assert list(to_plain(trees)) == ["after_task1", "after_task2", "recovery"]
    assert trees.recovery is not None
    assert trees.recovery.items == 1
    assert trees.recovery.accuracy["last"].n == 3


def test_without_recovery_there_is_none() -> None:
    rows = [line for line in run_of_two() if line.checkpoint != "recovered_task1"]
    assert spurious_forgetting(rows, ("trees", "birds"))["trees"].recovery is None


def test_drift_is_paired_by_passage() -> None:
    drift = text_drift(run_of_two(), ["initial", "after_task1", "after_task2"], seed=0)
    assert drift.passages == 3
    assert drift.loss["initial"].value == pytest.approx(2.0)
    first, second = drift.change["after_task1"], drift.change["after_task2"]
    assert (first.value, second.value) == (pytest.approx(0.1), pytest.approx(0.6))
    assert second.stderr == pytest.approx(0.1 / math.sqrt(3))


def test_losses_that_are_not_finite_leave_the_drift_out() -> None:
    rows = run_of_two()
    place = next(n for n, line in enumerate(rows) if isinstance(line, PassageRecord))
    rows[place] = replace(rows[place], loss=float("nan"))
    assert text_drift(rows, ["initial", "after_task1", "after_task2"], seed=0) == TextDrift(3, {}, {})


def test_what_could_have_been_detected_is_said() -> None:
    (detectable,) = summarise(run_of_two(), ("trees", "birds"), seed=0).forgetting.train.detectable
    assert detectable.n == 4
    assert detectable.drop == 1.0  # four items can show nothing less
    assert detectable.said.startswith("with 4 trained trees items, drops under 100 points")
