"""Paths, barriers, repairs and the plane of three checkpoints: on closed forms, and on a tiny model merged by hand."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import load, make_encoded, tiny_llama

from llm_forgetting.arrays import Floats
from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.experiment.analysis.checkpoint_plane import analyse_checkpoint_plane, plane_evaluations
from llm_forgetting.experiment.analysis.paths import analyse_between, analyse_path, path_evaluations, path_objective
from llm_forgetting.experiment.session import CheckpointUpdates
from llm_forgetting.files import encode
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.landscape.path import interpolate, selection_mask
from llm_forgetting.models.language.answer_statistics import AnswerStatistics
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.progress import Advance, Silent
from llm_forgetting.tasks.task import Item

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"q": (6, 5), "v": (3, 7)}
Items = list[tuple[str, list[EncodedItem]]]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(seed: int, rank: int = 2, size: float = 0.3) -> WeightUpdate:
    return WeightUpdate(
        {
            name: Factors(B=size * draw(rows, rank, seed=seed), A=draw(rank, columns, seed=seed + 1))
            for name, (rows, columns) in SHAPES.items()
        }
    )


def vector(update: Mapping[str, Factors]) -> Floats:
    parts = [(pair.B.double() @ pair.A.double()).reshape(-1) for pair in update.values()]
    return np.asarray(torch.cat(parts).numpy())


FIRST, SECOND, ORIGIN = make(0), make(10, rank=3), WeightUpdate.zero(make(0))
ENDS = [vector(FIRST), vector(SECOND)]


def test_along_is_the_straight_line() -> None:
    for t in (0.0, 0.25, 0.7, 1.0):
        np.testing.assert_allclose(vector(interpolate(FIRST, SECOND, t)), (1 - t) * ENDS[0] + t * ENDS[1], atol=1e-12)
    assert [interpolate(FIRST, SECOND, t)["q"].A.shape[0] for t in (0.0, 0.5, 1.0)] == [2, 5, 3]


@pytest.mark.parametrize(
    ("count", "pool", "expected"),
    [(1, 1, [0]), (2, 2, [0]), (5, 9, [0, 2, 4]), (6, 6, [0, 2, 4]), (5, 10, range(5)), (8, 40, range(8))],
)
def test_all_items_choose_where_others_are_left_to_judge_else_every_second(
    count: int, pool: int, expected: list[int]
) -> None:
    chosen = selection_mask(count, pool)
    assert chosen.shape == (count,)
    assert np.flatnonzero(chosen).tolist() == list(expected)


def test_a_fresh_adapter_is_no_update() -> None:
    assert not vector(ORIGIN).any()
    assert {name: pair.A.shape for name, pair in ORIGIN.items()} == {"q": (1, 5), "v": (1, 7)}


# Closed forms


class Bowls:
    """Item i of task k has letter logits (q, 0) and rest 0.5, q = height_i - steepness_i |dW - target_k|^2."""

    def __init__(self, sizes: Sequence[int] = (5, 4), broken: float | None = None) -> None:
        rng = np.random.default_rng(0)
        self.sizes = sizes
        self.items = named(sizes)
        self.names = tuple(name for name, _ in self.items)
        self.heights = [rng.uniform(1, 4, n) for n in sizes]
        self.steepness = [rng.uniform(0.2, 1.5, n) for n in sizes]
        self.broken = broken
        self.visited: list[Floats] = []

    def logits(self, dW: Floats) -> list[Floats]:
        targets = [0.9 * ENDS[0] + 0.1 * ENDS[1], ENDS[1]]
        return [
            h - s * ((dW - target) ** 2).sum()
            for h, s, target in zip(self.heights, self.steepness, targets, strict=True)
        ]

    def item_losses(self, dW: Floats) -> list[Floats]:
        return [np.log(np.exp(q) + 1 + math.exp(0.5)) - q for q in self.logits(dW)]

    def mean_losses(self, dW: Floats) -> Floats:
        return np.array([losses.mean() for losses in self.item_losses(dW)])

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        def values_at(points: Iterable[WeightUpdate]) -> Iterator[Floats]:
            for point in points:
                dW = vector(point)
                self.visited.append(dW)
                q = np.concatenate(self.logits(dW))
                if self.broken is not None and len(self.visited) == 4:
                    q[0] = self.broken
                yield np.concatenate([np.column_stack([q, np.zeros_like(q)]).reshape(-1), np.full_like(q, 0.5)])

        yield values_at

    def statistics(self, values: Floats) -> list[AnswerStatistics]:
        n = sum(self.sizes)
        z = values[..., : 2 * n].reshape(*values.shape[:-1], n, 2)
        rest, found, start = values[..., 2 * n :], [], 0
        for size in self.sizes:
            cut = slice(start, start + size)
            found.append(AnswerStatistics(z[..., cut, :], rest[..., cut], np.zeros(size, dtype=np.int64)))
            start += size
        return found

    def item_ids(self, index: int) -> tuple[str, ...]:
        return tuple(item.item.id for item in self.items[index][1])

    def losses(self, values: Floats) -> Floats:
        return np.stack([entry.surface("loss") for entry in self.statistics(values)], axis=-1)


def named(sizes: Sequence[int] = (5, 4)) -> Items:
    def items(task: str, count: int) -> list[EncodedItem]:
        return [EncodedItem(Item(f"{task}/train/{n}", task, "?", ("p", "q"), 0), (1,), (2, 3)) for n in range(count)]

    return [(task, items(task, count)) for task, count in zip(("trees", "birds"), sizes, strict=True)]


@pytest.fixture
def bowls() -> Bowls:
    return Bowls()


CONFIG = LandscapeConfig(resolution=11)


def written(record: Any) -> dict[str, Any]:
    """What a reader of the artifact finds."""
    content: dict[str, Any] = json.loads(encode(record))
    return content


def nothing(steps: int, text: str) -> None:
    pass


def path(objective: Any, second: WeightUpdate = SECOND, advance: Advance = nothing, **options: Any) -> dict[str, Any]:
    ends = {"first": FIRST, "second": second}
    return written(analyse_path(objective, ends, CONFIG, advance=advance, **options))


def line(t: float) -> Floats:
    return np.asarray((1 - t) * ENDS[0] + t * ENDS[1])


def test_a_path_is_the_loss_along_the_line(bowls: Bowls) -> None:
    """Logits are quadratic in t, so the fit is exact at every step."""
    found = path(bowls)
    expected = np.array([bowls.mean_losses(line(t)) for t in found["steps"]])
    assert found["steps"] == pytest.approx(np.linspace(0, 1, 101).tolist())
    assert found["converged"]
    assert found["update_norm"] == pytest.approx(float(np.linalg.norm(ENDS[1] - ENDS[0])), rel=1e-10)
    assert found["evaluations"] == len(bowls.visited) == path_evaluations() == 21
    for task, column, group in zip(("trees", "birds"), expected.T, named(), strict=True):
        record = found["tasks"][task]
        assert record["loss"] == pytest.approx(column.tolist(), abs=1e-9)
        assert record["items"] == [item.item.id for item in group[1]]
        above = column - np.linspace(column[0], column[-1], 101)
        assert record["barrier"]["value"] == pytest.approx(above.max(), abs=1e-9)
        assert record["barrier"]["at"] == pytest.approx(found["steps"][int(above.argmax())])
        assert record["error"]["largest"] < 1e-9
        assert record["error"]["wrong_letters"] == 0
    assert found["tasks"]["trees"]["barrier"]["value"] == 0.0
    correct = np.array([(bowls.logits(line(t))[0] > 0).mean() for t in found["steps"]])
    assert found["tasks"]["trees"]["accuracy"] == pytest.approx(correct.tolist())
    assert np.ptp(correct) > 0


def test_what_was_evaluated_on_a_path_stands_in_the_order_of_t(bowls: Bowls) -> None:
    found = path(bowls)
    assert found["nodes"] == sorted(found["nodes"])
    assert found["nodes"][0] == pytest.approx(-0.1)
    assert found["nodes"][-1] == 1.0
    for task, k in (("trees", 0), ("birds", 1)):
        record = found["tasks"][task]
        z = np.array([bowls.logits(line(t))[k] for t in found["nodes"]])
        np.testing.assert_allclose(np.array(record["letter_logits"])[:, :, 0], z, atol=1e-10)
        assert np.array(record["rest"]).shape == z.shape
        losses = [bowls.mean_losses(line(t))[k] for t in found["nodes"]]
        assert record["at_nodes"]["loss"] == pytest.approx(losses, abs=1e-10)
        assert record["answers"] == [0] * z.shape[1]


def test_the_best_compromise_is_chosen_on_one_half_and_judged_on_the_other(bowls: Bowls) -> None:
    found = path(bowls)["repair"]
    losses = [bowls.item_losses(line(t)) for t in np.linspace(0, 1, 101)]
    chosen = [np.mean([task[::2].mean() for task in at]) for at in losses]
    best = int(np.argmin(chosen))
    assert 0 < best < 100
    assert found["t"] == pytest.approx(best / 100)
    assert found["selection_items"] == [3, 2]
    assert found["mean_loss_on_selection"] == pytest.approx(chosen[best], abs=1e-9)
    others = {"trees": losses[best][0][1::2].mean(), "birds": losses[best][1][1::2].mean()}
    assert found["loss_on_the_others"] == pytest.approx(others, abs=1e-9)
    assert found["loss"] == pytest.approx({"trees": losses[best][0].mean(), "birds": losses[best][1].mean()}, abs=1e-9)
    everyone = [np.mean([task.mean() for task in at]) for at in losses]
    judges = [np.mean([task[1::2].mean() for task in at]) for at in losses]
    assert len({best, int(np.argmin(everyone)), int(np.argmin(judges))}) > 1


def test_a_single_item_chooses_and_nobody_judges() -> None:
    found = path(Bowls((1, 4)))
    assert found["repair"]["loss_on_the_others"]["trees"] is None
    assert found["repair"]["selection_items"] == [1, 2]


def test_progress_is_told_of_every_evaluation(bowls: Bowls) -> None:
    steps: list[int] = []
    path(bowls, advance=lambda n, text: steps.append(n))
    assert sum(steps) == len(bowls.visited)


def test_a_path_to_itself_is_flat(bowls: Bowls) -> None:
    found = path(bowls, FIRST)
    assert found["converged"]
    assert found["update_norm"] == pytest.approx(0, abs=1e-12)
    assert found["tasks"]["trees"]["error"]["relative"] == 0.0
    assert found["tasks"]["trees"]["barrier"]["value"] < 1e-9


# The plane


def plane(
    objective: Any, trajectory: Mapping[str, WeightUpdate] | None = None, config: LandscapeConfig = CONFIG
) -> dict[str, Any]:
    loaders = {name: (lambda update=update: update) for name, update in (trajectory or {}).items()}
    three = {"initial": ORIGIN, "after_task1": FIRST, "after_task2": SECOND}
    return written(analyse_checkpoint_plane(objective, three, config, advance=nothing, trajectory=loaders))


def basis() -> tuple[Floats, Floats]:
    """Unit axes by dense Gram-Schmidt; the origin is 0."""
    u = ENDS[0] / np.linalg.norm(ENDS[0])
    v = ENDS[1] - (ENDS[1] @ u) * u
    return u, np.asarray(v / np.linalg.norm(v))


def test_a_checkpoint_plane_is_the_loss_at_every_cell(bowls: Bowls) -> None:
    found = plane(bowls)
    u, v = basis()
    assert found["fit"]["converged"]
    assert found["fit"]["evaluations"] == len(found["points"])
    assert len(bowls.visited) == len(found["points"]) + 3 == plane_evaluations()
    cells = 0
    for i, a in enumerate(found["alphas"]):
        for j, b in enumerate(found["betas"]):
            expected = bowls.mean_losses(a * u + b * v)
            for k, task in enumerate(("trees", "birds")):
                value = found["surfaces"][task]["loss"][i][j]
                assert (value is not None) == found["inside"][i][j]
                if value is not None:
                    cells += 1
                    assert value == pytest.approx(expected[k], abs=1e-8)
    assert cells > 50
    for k, task in enumerate(("trees", "birds")):
        measured = [bowls.mean_losses(a * u + b * v)[k] for a, b in found["points"]]
        assert found["surfaces"][task]["measured_loss"] == pytest.approx(measured, abs=1e-9)


def test_the_plane_knows_its_checkpoints(bowls: Bowls) -> None:
    found = plane(bowls)
    u, v = basis()
    places = {"initial": (0, 0), "after_task1": (ENDS[0] @ u, 0), "after_task2": (ENDS[1] @ u, ENDS[1] @ v)}
    for name, corner in found["checkpoints"].items():
        assert tuple(corner) == pytest.approx(places[name], abs=1e-9)
    for k, task in enumerate(("trees", "birds")):
        losses = {n: bowls.mean_losses(dW)[k] for n, dW in zip(places, (0 * ENDS[0], *ENDS), strict=True)}
        assert found["surfaces"][task]["at_checkpoints"] == pytest.approx(losses, abs=1e-9)
        assert found["surfaces"][task]["error_at_checkpoints"] < 1e-8


def test_the_plane_is_drawn_on_the_triangle_and_a_margin(bowls: Bowls) -> None:
    """Barycentric weights of the widened triangle: each may fall below 0 by a tenth of a height, twice in all; without the
    fifth of the widened triangle at the base model, which is 1 - w_0 < 2 / 3 + 1.2 (1 / 5 - 2 / 3)."""
    found = plane(bowls, config=LandscapeConfig(resolution=31))
    corners = np.array(list(found["checkpoints"].values()))
    system = np.vstack([corners.T, np.ones(3)])
    for i, a in enumerate(found["alphas"]):
        for j, b in enumerate(found["betas"]):
            weights = np.linalg.solve(system, [a, b, 1.0])
            least, most = 1 / 3 - 1.2 / 3, 1 / 3 + 1.2 * (2 / 3 - 1 / 5)
            if abs(weights.min() - least) > 1e-6 and abs(weights[0] - most) > 1e-6:
                assert found["inside"][i][j] == (weights.min() > least and weights[0] < most)
    steps = [np.diff(found[axis]) for axis in ("alphas", "betas")]
    assert max(len(found[axis]) for axis in ("alphas", "betas")) == 31
    for step in steps:
        np.testing.assert_allclose(step, steps[0][0], rtol=0.05)
    for point in found["points"]:
        weights = np.linalg.solve(system, [*point, 1.0])
        assert weights.min() > 1 / 3 - 1.2 / 3 - 1e-9
        assert weights[0] < 1 / 3 + 1.2 * (2 / 3 - 1 / 5) + 1e-9
    outline = [np.linalg.solve(system, [*corner, 1.0]) for corner in found["outline"]]
    assert sorted(round(float(weights[0]), 9) for weights in outline) == pytest.approx([least, least, most, most])


def test_updates_of_the_trajectory_are_projected(bowls: Bowls) -> None:
    halfway = WeightUpdate.combine([(0.5, FIRST), (0.3, make(20, size=0.1))])
    far = WeightUpdate.combine([(-3.0, FIRST), (1.0, make(30))])
    found = plane(bowls, {"halfway": halfway, "far": far, "corner": SECOND})["trajectory"]
    u, v = basis()
    assert [entry["name"] for entry in found] == ["halfway", "far", "corner"]
    for entry, update in zip(found, (halfway, far, SECOND), strict=True):
        dW = vector(update)
        a, b = dW @ u, dW @ v
        assert (entry["a"], entry["b"]) == pytest.approx((a, b), abs=1e-9)
        assert entry["residual"] == pytest.approx(np.linalg.norm(dW - a * u - b * v), abs=1e-6)
        assert list(entry["loss"].values()) == pytest.approx(bowls.mean_losses(dW).tolist(), abs=1e-9)
        if entry["name"] == "far":
            assert entry["in_plane_loss"] is None
        else:
            there = bowls.mean_losses(a * u + b * v)
            assert list(entry["in_plane_loss"].values()) == pytest.approx(there.tolist(), abs=1e-8)


# What cannot be measured


def between(
    objective: Any, tmp_path: Path, checkpoints: Mapping[str, WeightUpdate], config: LandscapeConfig = CONFIG
) -> dict[str, Any]:
    def journal(name: str) -> Path:
        return tmp_path / f"{name}.journal"

    return written(analyse_between(objective, checkpoints, config, progress=Silent(), journal=journal))


def test_paths_lead_from_each_checkpoint_to_the_next(bowls: Bowls, tmp_path: Path) -> None:
    third = make(40)
    found = between(bowls, tmp_path, {"initial": ORIGIN, "one": FIRST, "two": SECOND, "three": third})
    assert [(entry["from"], entry["to"]) for entry in found["paths"]] == [("one", "two"), ("two", "three")]
    ends = bowls.mean_losses(vector(third))
    assert found["paths"][1]["tasks"]["trees"]["loss"][-1] == pytest.approx(ends[0], abs=1e-9)
    assert list(found["checkpoint_plane"]["checkpoints"]) == ["initial", "one", "three"]
    assert found["between_notes"] == []
    assert {path.stem for path in tmp_path.iterdir()} == {"path_to_two", "path_to_three", "checkpoint_plane"}


def test_a_plane_that_is_not_asked_for_is_not_measured(bowls: Bowls, tmp_path: Path) -> None:
    three = {"initial": ORIGIN, "one": FIRST, "two": SECOND}
    found = between(bowls, tmp_path, three, LandscapeConfig(checkpoint_plane=False))
    assert found["checkpoint_plane"] is None
    assert len(bowls.visited) == path_evaluations()


def test_checkpoints_on_one_line_have_a_path_and_no_plane(bowls: Bowls, tmp_path: Path) -> None:
    found = between(bowls, tmp_path, {"initial": ORIGIN, "one": FIRST, "two": WeightUpdate.combine([(2.0, FIRST)])})
    assert len(found["paths"]) == 1
    assert found["checkpoint_plane"] is None
    (note,) = found["between_notes"]
    assert "one line" in note


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_path_that_diverges_is_left_out_and_said_so(broken: float, tmp_path: Path) -> None:
    """The fourth evaluation is broken: one of the path's."""
    found = between(Bowls(broken=broken), tmp_path, {"initial": ORIGIN, "one": FIRST, "two": SECOND})
    assert found["paths"] == []
    assert found["checkpoint_plane"] is not None
    (note,) = found["between_notes"]
    assert "path from one to two" in note
    assert "not finite" in note


def test_a_path_that_is_stopped_goes_on_and_is_the_same(tmp_path: Path) -> None:
    journal, made = tmp_path / "path.journal", Bowls()
    expected = path(made)
    whole = len(made.visited)
    visited, found = 0, None
    while found is None:
        made = Bowls()

        def stop(steps: int, text: str, run: Bowls = made) -> None:
            if len(run.visited) == 2:
                raise KeyboardInterrupt

        try:
            found = path(made, advance=stop, journal=journal)
        except KeyboardInterrupt:
            assert journal.exists()
        visited += len(made.visited)
    assert found == expected
    assert visited == whole
    assert journal.read_text().count("\n") == found["evaluations"]  # whoever keeps the result clears it


# A tiny model


@pytest.fixture(scope="module")
def trained(llama_folder: Path) -> tuple[LanguageModel, Items, WeightUpdate, WeightUpdate]:
    """A model, 7 and 4 items, and its adapter after two moderate steps."""
    model = load(llama_folder)
    items = make_encoded(model, 11, options=[4, 5])
    first = model.adapter_factors()
    generator = torch.Generator().manual_seed(5)
    second = WeightUpdate(
        {
            name: Factors(B=pair.B + 0.15 * torch.randn(pair.B.shape, generator=generator), A=1.1 * pair.A)
            for name, pair in first.items()
        }
    )
    return model, [("trees", items[:7]), ("birds", items[7:])], first, second


def merged_losses(update: Mapping[str, Floats], items: Sequence[EncodedItem]) -> Floats:
    """Item losses of the bare backbone with `update` put into its weights, unpadded."""
    backbone = tiny_llama()
    modules = dict(backbone.named_modules())
    for name, matrix in update.items():
        modules[name].weight.data += torch.tensor(matrix, dtype=torch.float32)
    with torch.inference_mode():
        return np.array(
            [
                float(F.cross_entropy(logits, torch.tensor(item.letter_ids[item.item.answer])))
                for item in items
                for logits in [backbone(input_ids=torch.tensor([item.input_ids])).logits[0, -1]]
            ]
        )


def dense(update: WeightUpdate) -> dict[str, Floats]:
    return {name: (pair.B.double() @ pair.A.double()).numpy() for name, pair in update.items()}


@pytest.mark.slow
def test_the_path_of_a_model_is_the_loss_of_weights_merged_by_hand(
    trained: tuple[LanguageModel, Items, WeightUpdate, WeightUpdate],
) -> None:
    model, items, first, second = trained
    before = model.adapter_sha256()
    config = LandscapeConfig(space="weight", batch_size=4, tolerance=0.01)
    objective, ends = path_objective(model, items, config), {"first": first, "second": second}
    found = written(analyse_path(objective, ends, config, advance=nothing))
    assert found["converged"]
    a, b = dense(first), dense(second)

    def at(t: float, task: int) -> Floats:
        return merged_losses({name: (1 - t) * a[name] + t * b[name] for name in a}, items[task][1])

    for task, (name, _) in enumerate(items):
        record = found["tasks"][name]
        for n in (0, 3, len(found["nodes"]) - 1):
            assert record["at_nodes"]["loss"][n] == pytest.approx(at(found["nodes"][n], task).mean(), abs=1e-4)
        slack = 5 * 0.01 * min(2, np.ptp(record["loss"]))
        for n in (0, 20, 55, 100):
            assert record["loss"][n] == pytest.approx(at(n / 100, task).mean(), abs=slack)
    exact = [np.mean([at(t, task)[::2].mean() for task in (0, 1)]) for t in np.linspace(0, 1, 21)]
    chosen = np.mean([at(found["repair"]["t"], task)[::2].mean() for task in (0, 1)])
    assert chosen <= min(exact) + 0.02 * np.ptp(exact)
    norm = math.sqrt(sum(((b[name] - a[name]) ** 2).sum() for name in a))
    assert found["update_norm"] == pytest.approx(norm, rel=1e-5)
    assert model.adapter_sha256() == before


def test_the_checkpoint_plane_of_a_model_is_the_loss_of_weights_merged_by_hand(
    trained: tuple[LanguageModel, Items, WeightUpdate, WeightUpdate],
) -> None:
    model, items, first, second = trained
    three = {"initial": WeightUpdate.zero(first), "after_task1": first, "after_task2": second}
    config = LandscapeConfig(batch_size=4, resolution=9, max_evaluations=40)
    objective = path_objective(model, items, config)
    found = written(
        analyse_checkpoint_plane(objective, three, config, advance=nothing, trajectory={"epoch 1": lambda: first})
    )
    updates = [dense(update) for update in three.values()]
    for name, group in items:
        surface = found["surfaces"][name]
        expected = [merged_losses(update, group).mean() for update in updates]
        assert list(surface["at_checkpoints"].values()) == pytest.approx(expected, abs=1e-4)
        assert found["trajectory"][0]["loss"][name] == pytest.approx(expected[1], abs=1e-4)
    assert found["trajectory"][0]["residual"] < 1e-3 * found["checkpoints"]["after_task1"][0]
    # the fifth point evaluated, from the corners' own coordinates
    corners = np.array(list(found["checkpoints"].values()))
    weights = np.linalg.solve(np.vstack([corners.T, np.ones(3)]), [*found["points"][4], 1.0])
    point = {n: sum(w * update[n] for w, update in zip(weights, updates, strict=True)) for n in updates[0]}
    for name, group in items:
        there = found["surfaces"][name]["measured_loss"][4]
        assert there == pytest.approx(merged_losses(point, group).mean(), rel=1e-3)


def test_checkpoints_are_read_when_they_are_needed() -> None:
    """Three at a time at most, however many tasks there are."""
    read: list[int] = []

    class Stub:
        config = SimpleNamespace(data=SimpleNamespace(tasks=["a", "b", "c"]))

        def at(self, k: int) -> Any:
            return SimpleNamespace(adapter_factors=lambda: read.append(k) or make(k))

    updates = CheckpointUpdates(Stub())  # type: ignore[arg-type]
    assert list(updates) == ["initial", "after_task1", "after_task2", "after_task3"]
    assert not read
    np.testing.assert_array_equal(vector(updates["after_task2"]), vector(make(2)))
    assert not vector(updates["initial"]).any()
    assert read == [2, 1]
