"""Every evaluation is made once, written down bit for bit, and found again after an interruption."""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.domains import square
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.nodes import CachedEvaluator, Journal
from llm_forgetting.landscape.spectral import Rule, SpectralSurface, fit_surface

NUMBERS = [0.1, -0.0, 1 / 3, math.pi * 1e300, 5e-324, 2.0**-1074 * 3, np.nan, np.inf, -np.inf, np.nextafter(1, 2)]


def bits(values: Floats) -> bytes:
    return struct.pack(f"{len(values)}d", *values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.journal"


def filled(path: Path, lines: int = 3) -> Journal:
    journal = Journal(path)
    for n in range(lines):
        journal.put(f"plane {n}", np.array([n, n + 0.1]))
    return journal


# Journal


def test_numbers_come_back_bit_for_bit(path: Path) -> None:
    Journal(path).put("plane 0.1 -2.0", np.array(NUMBERS))
    found = Journal(path).get("plane 0.1 -2.0")
    assert found is not None
    assert bits(found) == bits(np.array(NUMBERS))


def test_random_numbers_come_back_bit_for_bit(path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 2**63, size=500).view(np.float64)
    values = np.where(np.isnan(raw), 0.0, raw)
    Journal(path).put("k", values)
    np.testing.assert_array_equal(Journal(path).get("k"), values)


def test_every_evaluation_is_on_disk_at_once(path: Path) -> None:
    journal = Journal(path)
    for n in range(3):
        journal.put(f"plane {n}", np.array([float(n)]))
        assert [json.loads(line.partition("\t")[0]) for line in path.read_text().splitlines()] == [
            [f"plane {m}", [m]] for m in range(n + 1)
        ]


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_last_line_that_was_cut_short_is_written_anew(path: Path, cut: int) -> None:
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path)
    assert [journal.get(f"plane {n}") is not None for n in range(3)] == [True, True, False]
    journal.put("plane 2", np.array([2, 2.1]))
    assert path.read_bytes() == whole
    assert Journal(path).get("plane 2") is not None


@pytest.mark.parametrize("other", [b'["plane 1", [1.0, 1.2]]', b"\xff", b"[]", b""])
def test_a_damaged_line_is_evaluated_again(path: Path, other: bytes) -> None:
    filled(path)
    path.write_bytes(path.read_bytes().replace(b'["plane 1", [1.0, 1.1]]', other))
    journal = Journal(path)
    assert [journal.get(f"plane {n}") is not None for n in range(3)] == [True, False, True]
    journal.put("plane 1", np.array([1, 1.1]))
    assert Journal(path).get("plane 1") is not None


@pytest.mark.parametrize("content", ["", '["plane', "\n"])
def test_a_journal_without_a_whole_line_is_empty(path: Path, content: str) -> None:
    path.write_text(content)
    journal = Journal(path)
    journal.put("plane 0", np.array([1.0]))
    found = Journal(path).get("plane 0")
    assert found is not None
    assert found.tolist() == [1.0]


def test_a_cleared_journal_is_gone(path: Path) -> None:
    journal = filled(path)
    journal.clear()
    assert not path.exists()
    assert journal.get("plane 0") is None
    journal.clear()
    Journal().clear()


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal.put("plane 0", np.array([1.0]))
    assert journal.get("plane 0") is not None
    assert journal.get("plane 1") is None
    assert not list(tmp_path.iterdir())


# CachedEvaluator

Point = dict[str, Factors]


def make(row: Sequence[float]) -> Point:
    """A point that carries its coordinates."""
    return {"w": Factors(B=torch.tensor([list(row)], dtype=torch.float64), A=torch.eye(len(row), dtype=torch.float64))}


class Evaluator:
    """`f` of the coordinates, in chunks, as models are asked; raises after `lives` evaluations."""

    def __init__(self, f: Callable[[Floats], Floats], lives: float = math.inf, chunk: int = 1) -> None:
        self.f, self.lives, self.chunk = f, lives, chunk
        self.asked: list[tuple[float, ...]] = []

    def __call__(self, points: Iterable[Point]) -> Iterator[Floats]:
        iterator = iter(points)
        while chunk := list(islice(iterator, self.chunk)):
            for point in chunk:
                if len(self.asked) >= self.lives:
                    raise KeyboardInterrupt
                row = tuple(point["w"].B[0].tolist())
                self.asked.append(row)
                yield self.f(np.array([row]))[0]


def wave(points: Floats) -> Floats:
    return np.column_stack([np.sin(3.5 * points.sum(axis=1)), np.cos(points[:, 0]), np.full(len(points), -np.inf)])


def test_values_come_in_the_order_of_their_coordinates() -> None:
    places = np.array([[0.3, 0.1], [0.0, 0.0], [-1.0, 2.0]])
    evaluator = Evaluator(wave)
    np.testing.assert_array_equal(CachedEvaluator(evaluator).at("plane", places, make), wave(places))
    assert evaluator.asked == [tuple(row) for row in places.tolist()]


def test_every_point_of_a_family_is_evaluated_once(path: Path) -> None:
    steps: list[int] = []
    evaluator = Evaluator(wave)
    nodes = CachedEvaluator(evaluator, Journal(path), lambda: steps.append(1))
    places = np.array([[0.5], [-0.0], [0.0], [0.5]])
    np.testing.assert_array_equal(nodes.at("line 2", places, make), wave(places))
    assert evaluator.asked == [(0.5,), (0.0,)]
    assert nodes.evaluations == len(steps) == 2
    nodes.at("line 2", places[:1], make)
    assert (nodes.evaluations, len(evaluator.asked)) == (2, 2)
    steps.pop()
    nodes.at("line 3", np.array([[0.5]]), make)
    assert len(evaluator.asked) == nodes.evaluations == len(steps) == 3


def test_neighbouring_floats_are_different_points() -> None:
    evaluator = Evaluator(wave)
    CachedEvaluator(evaluator).at("plane", np.array([[0.1], [np.nextafter(0.1, 1)], [0.1 + 1e-12]]), make)
    assert len(evaluator.asked) == 3


def test_points_are_made_when_their_turn_comes() -> None:
    alive = {"now": 0, "most": 0}

    def counted(row: Sequence[float]) -> Point:
        alive["now"] += 1
        alive["most"] = max(alive.values())
        return make(row)

    def values_at(points: Iterable[Point]) -> Iterator[Floats]:
        for point in points:
            yield np.array([float(point["w"].B[0, 0])])
            alive["now"] -= 1

    CachedEvaluator(values_at).at("plane", np.arange(9.0)[:, None], counted)
    assert alive["most"] == 1


def test_too_few_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        CachedEvaluator(lambda points: iter([np.zeros(1)])).at("plane", np.arange(3.0)[:, None], make)


@pytest.mark.parametrize("lives", [0, 1, 5])
def test_what_was_evaluated_before_an_interruption_is_known_after_it(path: Path, lives: int) -> None:
    places = np.random.default_rng(0).normal(size=(8, 2))
    with pytest.raises(KeyboardInterrupt):
        CachedEvaluator(Evaluator(wave, lives), Journal(path)).at("plane", places, make)
    steps: list[int] = []
    second = Evaluator(wave)
    found = CachedEvaluator(second, Journal(path), lambda: steps.append(1)).at("plane", places, make)
    np.testing.assert_array_equal(found, wave(places))
    assert second.asked == [tuple(row) for row in places[lives:].tolist()]
    assert len(steps) == 8


def scan(evaluator: Evaluator, path: Path | None) -> SpectralSurface:
    nodes = CachedEvaluator(evaluator, Journal(path))
    return fit_surface(
        lambda places: nodes.at("plane", places, make), lambda values: values[:, :2], square(1.0), Rule(budget=60)
    )


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_scan_that_is_stopped_everywhere_is_the_scan_in_one_go(path: Path, chunk: int) -> None:
    whole = Evaluator(wave, chunk=chunk)
    expected = scan(whole, None)
    assert expected.evaluations > 36  # the first check points said no
    asked, found = [], None
    while found is None:
        evaluator = Evaluator(wave, lives=5, chunk=chunk)
        try:
            found = scan(evaluator, path)
        except KeyboardInterrupt:
            with path.open("a") as file:
                file.write('["plane 0.1')  # and the next line was cut short
        asked += evaluator.asked
    assert asked == whole.asked
    assert len(set(asked)) == len(asked)

    def numbers(surface: SpectralSurface) -> list[Any]:
        return [surface.fit.coefficients, surface.previous.coefficients, surface.points, surface.values, surface.error]

    for one, other in zip(numbers(found), numbers(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found.converged, found.evaluations) == (expected.converged, expected.evaluations)
