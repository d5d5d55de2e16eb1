"""The public API on other people's models, against closed forms, dense matrices and plain loops."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import ROOT
from small_models import (
    DOUBLE,
    Batch,
    Everything,
    Point,
    Watch,
    draw_like,
    flat,
    mean_loss,
    network,
    over_all,
    some_batches,
    three_states,
)

import llm_forgetting as lf
from llm_forgetting.landscape.domains import random_points
from llm_forgetting.seeding import generator

pytestmark = pytest.mark.usefixtures("one_thread")


def quadratic(seed: int = 0, lift: float = 0.0) -> tuple[Callable[[Any, Any], Any], torch.Tensor, torch.Tensor]:
    """2 + g p + p H p / 2 of the eight parameters of a `Point`, from where it begins; `lift` is added to H's diagonal."""
    generator = torch.Generator().manual_seed(seed)
    root, g = torch.randn(8, 8, generator=generator, dtype=DOUBLE), torch.randn(8, generator=generator, dtype=DOUBLE)
    origin, H = flat(Point().parameters()), root + root.T + lift * torch.eye(8, dtype=DOUBLE)

    def loss(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        p = torch.cat([part.reshape(-1) for part in model.parameters()]) - origin
        return 3 * (2 + g @ p + p @ H @ p / 2), 3

    return loss, g, H


@pytest.mark.parametrize("method", ["spectral", "grid"])
def test_a_quadratic_is_drawn_exactly_and_not_transposed(method: Any) -> None:
    model = Point()
    loss, g, H = quadratic()
    d, e = (draw_like(model, seed) for seed in (1, 2))
    x, y = flat(d.values()), flat(e.values())
    found = lf.scan_plane(model, loss, [None], directions=(d, e), distance=0.7, method=method, resolution=5)
    for i, a in enumerate(found.alphas):
        for j, b in enumerate(found.betas):
            p = a * x + b * y
            assert found[i, j] == found.losses[i, j] == pytest.approx(float(2 + g @ p + p @ H @ p / 2), rel=1e-9)
    assert found.alphas.tolist() == found.betas.tolist() == [-0.7, -0.35, 0.0, 0.35, 0.7]
    assert (found.converged, found.evaluations) == (True, {"spectral": 23, "grid": 25}[method])
    assert found.centre == pytest.approx(2.0)
    assert found.along.units == pytest.approx((float(x.norm()), float(y.norm())))
    assert found.along.cosine == pytest.approx(float(x @ y / x.norm() / y.norm()))
    if method == "spectral":
        assert found.error is not None
        assert found.error < 1e-10
        assert found.evaluated.checks == 8
        plane = np.array([[float(x @ H @ x), float(x @ H @ y)], [float(x @ H @ y), float(y @ H @ y)]])
        assert found.metrics().centre_eigenvalues == pytest.approx(tuple(np.linalg.eigvalsh(plane)), rel=1e-5)
    expected = [
        2 + float(g @ (a * x + b * y) + (a * x + b * y) @ H @ (a * x + b * y) / 2) for a, b in found.evaluated.points
    ]
    assert found.evaluated.losses == pytest.approx(expected)


def hessian_of(model: torch.nn.Module, batches: list[Batch]) -> torch.Tensor:
    """Dense, over all parameters, in their order."""
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    inputs, targets = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        state = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, state, (inputs,)), targets)

    found = torch.autograd.functional.hessian(loss, flat(model.parameters()))
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("direction", ["random", "gradient", "given"])
def test_second_difference_of_a_line_is_the_hessian_along_it(direction: str) -> None:
    model, batches = network(), some_batches()
    watch = Watch(mean_loss)
    chosen: Any = draw_like(model, 3) if direction == "given" else direction
    h = 1e-3
    line = lf.scan_line(model, watch, batches, direction=chosen, steps=[-h, 0.0, h])
    down, up = watch.seen[-9], watch.seen[-3]  # three batches a step
    d = (up - down) / (2 * h)
    assert line.losses[1] == pytest.approx(over_all(model, batches), rel=1e-12)
    expected = float(d @ hessian_of(model, batches) @ d)
    assert (line[0] - 2 * line[1] + line[2]) / h**2 == pytest.approx(expected, rel=1e-4, abs=1e-5)
    weights = flat(p for p in model.parameters() if p.ndim == 2)
    if direction != "given":
        assert line.along.norm == pytest.approx(float(weights.norm()))
        assert float(d.norm()) == pytest.approx(float(weights.norm()), rel=1e-6)
    if direction == "gradient":
        model.zero_grad()
        sum(mean_loss(model, batch) * len(batch[0]) for batch in batches).backward()  # type: ignore[union-attr]
        gradient = flat(p.grad if p.ndim == 2 else torch.zeros_like(p) for p in model.parameters())  # type: ignore[misc]
        assert float(F.cosine_similarity(d, -gradient, dim=0)) == pytest.approx(1.0, abs=1e-9)


def test_random_directions_are_filter_normalised_and_leave_biases_alone() -> None:
    """Every row of a direction has the norm of the weight's row, times distance over |W| of all of them: here times 1."""
    model, batches = network(), some_batches()
    watch = Watch(mean_loss)
    lf.scan_line(model, watch, batches, steps=[1.0])
    moved, start = watch.seen[-1], watch.seen[0]
    at = 0
    for parameter in model.parameters():
        step = (moved - start)[at : at + parameter.numel()].reshape(parameter.shape)
        at += parameter.numel()
        if parameter.ndim == 1:
            assert not step.any()
        else:
            assert step.norm(dim=1).tolist() == pytest.approx(parameter.norm(dim=1).tolist(), rel=1e-5)


@pytest.mark.parametrize("space", ["random", "gradient"])
def test_axes_of_a_plane_are_orthogonal_and_of_one_length(space: Any) -> None:
    model, watch = network(), Watch(mean_loss)
    plane = lf.scan_plane(
        model, watch, some_batches(sizes=(4,)), directions=space, method="grid", resolution=3, distance=0.1
    )
    at = {
        (round(a, 3), round(b, 3)): seen for (a, b), seen in zip(plane.evaluated.points, watch.seen[-9:], strict=True)
    }
    d, e = (at[place] - at[0.0, 0.0] for place in ((0.1, 0.0), (0.0, 0.1)))
    assert float(d @ e) == pytest.approx(0.0, abs=1e-9)
    assert float(d.norm()) == pytest.approx(0.1 * plane.along.norm, rel=1e-6)
    assert float(e.norm()) == pytest.approx(0.1 * plane.along.norm, rel=1e-6)


class Net(torch.nn.Module):
    """The network of benchmarks/given_directions.py: low-rank updates as parameters, W as buffers."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__()
        for name, pair in problem["base"].items():
            factors = {part: torch.nn.Parameter(torch.tensor(value, dtype=DOUBLE)) for part, value in pair.items()}
            self.add_module(name, torch.nn.ParameterDict(factors))
            self.register_buffer(f"W_{name}", torch.tensor(problem["W"][name], dtype=DOUBLE))

    def weight(self, name: str) -> torch.Tensor:
        pair: Any = getattr(self, name)
        return torch.as_tensor(getattr(self, f"W_{name}") + pair["B"] @ pair["A"])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(inputs @ self.weight("first").T) @ self.weight("second").T


def test_given_directions_draw_what_the_peers_draw() -> None:
    """loss-landscape-3d's and nngeom's surfaces, recorded by benchmarks/given_directions.py."""
    held = json.loads((ROOT / "tests/data/given_directions.json").read_text())
    directions = tuple(
        {
            f"{name}.{part}": torch.tensor(v, dtype=DOUBLE)
            for name, pair in held[key].items()
            for part, v in pair.items()
        }
        for key in "de"
    )
    inputs, targets = torch.tensor(held["inputs"], dtype=DOUBLE), torch.tensor(held["targets"])
    batches = list(zip(inputs.split(5), targets.split(5), strict=True))
    found = lf.scan_plane(Net(held), mean_loss, batches, directions=directions, method="grid", resolution=5)
    assert found.alphas.tolist() == held["alphas"]
    surfaces = held["surfaces"]
    np.testing.assert_allclose(found.losses, surfaces["plain_loop"], atol=1e-12)
    np.testing.assert_allclose(found.losses, surfaces["loss_landscape_3d"], atol=1e-5)
    np.testing.assert_allclose(found.losses, np.transpose(surfaces["nngeom_transposed"]), atol=1e-5)
    assert np.abs(found.losses - found.losses.T).max() > 0.05  # a transposed surface would be seen


def test_given_directions_are_a_plain_loop_over_the_parameters() -> None:
    model, batches = network(torch.float32), some_batches(torch.float32)
    d, e = (draw_like(model, seed) for seed in (4, 5))
    del e["0.bias"]  # what is left out is not moved
    found = lf.scan_plane(model, mean_loss, batches, directions=(d, e), method="grid", resolution=3)
    for i, a in enumerate(found.alphas):
        for j, b in enumerate(found.betas):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for name, moved in other.named_parameters():
                    moved.add_(float(a) * d[name] + float(b) * e.get(name, torch.zeros(())))
            assert found[i, j] == pytest.approx(over_all(other, batches), abs=1e-6)


def test_filter_normalisation_of_given_directions() -> None:
    model, watch = network(), Watch(mean_loss)
    lf.scan_line(
        model, watch, some_batches(sizes=(3,)), direction=draw_like(model, 1), normalise="filter", steps=[0.0, 1.0]
    )
    step = watch.seen[-1] - watch.seen[-2]
    rows, own = step[:12].reshape(4, 3), model[0].weight
    assert rows.norm(dim=1).tolist() == pytest.approx(own.norm(dim=1).tolist())
    assert not step[12:16].any()


class Odd(torch.nn.Module):
    """A convolution whose weights lie in another order in memory, an embedding, and a scale of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(4, 18)
        self.convolution = torch.nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.scale * self.convolution(self.words(words).reshape(-1, 2, 3, 3)).mean(dim=(2, 3)))


@pytest.mark.parametrize("direction", ["random", "gradient", "given"])
def test_parameters_of_any_shape_and_order_in_memory(direction: str) -> None:
    torch.manual_seed(0)
    model, batches = Odd(), [(torch.arange(4), torch.tensor([0, 1, 2, 0]))]
    assert not model.convolution.weight.is_contiguous()
    before, watch = Everything(model), Watch(mean_loss)
    if direction == "given":
        lf.scan_line(model, watch, batches, direction=draw_like(model, 2), steps=[1.0])
        step = flat(draw_like(model, 2).values())
    else:
        lf.scan_line(model, watch, batches, direction=direction, parameters=["*"], steps=[1.0])  # type: ignore[arg-type]
        step = watch.seen[-1] - watch.seen[0]
        assert float(step.norm()) == pytest.approx(float(flat(model.parameters()).norm()), rel=1e-5)
    torch.testing.assert_close(watch.seen[-1], watch.seen[0] + step)
    if direction == "random":  # an entry of a scale or bias moves by its own size
        moves = dict(
            zip(dict(model.named_parameters()), step.split([p.numel() for p in model.parameters()]), strict=True)
        )
        assert abs(float(moves["scale"])) == pytest.approx(0.7, rel=1e-5)
        rows = model.convolution.weight.detach().reshape(3, -1).norm(dim=1)
        found = moves["convolution.weight"].reshape(3, -1).norm(dim=1)
        assert found.tolist() == pytest.approx(rows.tolist(), rel=1e-5)
    before.assert_same(model)


def per_item(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def sum_and_count(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


@pytest.mark.parametrize("loss", [mean_loss, per_item, sum_and_count])
def test_ragged_batches_weigh_what_they_hold(loss: Any) -> None:
    model, batches = network(), some_batches(sizes=(7, 1, 3))
    assert lf.scan_line(model, loss, batches, steps=[0.0])[0] == pytest.approx(over_all(model, batches), rel=1e-12)
    mean_of_means = np.mean([over_all(model, [batch]) for batch in batches])
    assert abs(mean_of_means - over_all(model, batches)) > 1e-3


def test_tasks_are_measured_in_one_pass_and_kept_apart() -> None:
    model, watch = network(), Watch(mean_loss)
    tasks = {"old": some_batches(seed=1), "new": some_batches(seed=2, sizes=(4,))}
    both = lf.scan_plane(model, watch, tasks, distance=0.3)
    assert list(both) == ["old", "new"]
    for name, batches in tasks.items():
        alone = lf.scan_plane(model, mean_loss, batches, distance=0.3)
        np.testing.assert_allclose(both[name].losses, alone.losses, atol=2 * max(both[name].error, alone.error))  # type: ignore[type-var, operator]
        assert both[name].centre == pytest.approx(over_all(model, batches), abs=1e-3)
    assert len(watch.seen) == (both["old"].evaluations + 2) * 4  # three batches and one, two passes to check them


@pytest.mark.parametrize(
    ("patterns", "moves"), [(None, ["0.weight"]), (["2.*"], ["2.weight", "2.bias"]), (["*.bias"], ["0.bias", "2.bias"])]
)
@pytest.mark.parametrize("direction", ["random", "gradient"])
def test_what_is_frozen_or_not_named_is_not_moved(direction: Any, patterns: Any, moves: list[str]) -> None:
    model, watch = network(), Watch(mean_loss)
    model[2].requires_grad_(False)
    lf.scan_line(model, watch, some_batches(sizes=(3,)), direction=direction, parameters=patterns, steps=[0.0, 1.0])
    step = (watch.seen[-1] - watch.seen[-2]).split([p.numel() for p in model.parameters()])
    assert [name for (name, _), part in zip(model.named_parameters(), step, strict=True) if part.any()] == moves
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]


class Tied(torch.nn.Module):
    """Words are embedded and read off with one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4, dtype=DOUBLE)
        self.head = torch.nn.Linear(4, 5, bias=False, dtype=DOUBLE)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(torch.tanh(self.embedding(words))))


@pytest.mark.parametrize("names", [["embedding.weight"], ["head.weight"], ["embedding.weight", "head.weight"]])
def test_tied_weights_are_moved_once(names: list[str]) -> None:
    torch.manual_seed(0)
    model, words = Tied(), torch.arange(5)
    step = torch.randn(5, 4, dtype=DOUBLE)
    batches = [(words, words.roll(1))]
    found = lf.scan_line(model, mean_loss, batches, direction=dict.fromkeys(names, step), steps=[0.5])
    other = copy.deepcopy(model)
    other.embedding.weight.data += 0.5 * step
    assert found[0] == pytest.approx(over_all(other, batches), rel=1e-12)
    watch = Watch(mean_loss)
    lf.scan_line(model, watch, batches, steps=[1.0])
    assert watch.seen[-1].shape == (20,)
    assert float((watch.seen[-1] - watch.seen[0]).norm()) == pytest.approx(float(model.head.weight.detach().norm()))


def test_where_the_loss_is_not_finite_every_cell_is_evaluated() -> None:
    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return (model.weight.sum() - flat(Point().parameters())[:6].sum()).log1p(), 1

    down = {"weight": torch.full((2, 3), -1 / 6, dtype=DOUBLE)}
    line = lf.scan_line(Point(), loss, [None], direction=down, distance=2.0)
    assert "not finite" in (line.evaluated.note or "")
    assert line.steps.tolist() == pytest.approx(np.linspace(-2, 2, 11).tolist())
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_allclose(line.losses, np.log1p(-line.steps), atol=1e-9)
    plane = lf.scan_plane(Point(), loss, [None], directions=(down, {"bias": torch.ones(2)}), distance=2.0)
    assert plane.evaluated.note
    assert np.isnan(plane[-1]).all()
    assert np.isfinite(plane[0]).all()


def test_a_hole_between_the_cells_is_not_called_converged() -> None:
    """One check point is not finite; none of the 7 x 7 cells that are then evaluated is near it."""
    hole = random_points("square", generator(0, "check points", 0), 8)[2]

    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        place = torch.stack([model.weight.sum() - Point().weight.sum(), model.bias[0] - 0.5])
        value = 3 + place.square().sum()
        return torch.where((place - torch.tensor(hole)).norm() < 0.05, torch.nan, value), 1

    directions = {"weight": torch.full((2, 3), 1 / 6, dtype=DOUBLE)}, {"bias": torch.tensor([1.0, 0.0], dtype=DOUBLE)}
    plane = lf.scan_plane(Point(), loss, [None], directions=directions)
    assert plane.losses.shape == (7, 7)
    assert np.isfinite(plane.losses).all()
    assert not plane.converged
    assert "not converged" in repr(plane)
    assert "1 of 8 points are not finite" in str(plane.evaluated.note)
    assert lf.scan_plane(Point(), loss, [None], directions=directions, method="grid").converged


def test_flatness_of_a_quadratic_in_closed_form() -> None:
    """The mean of both ends rises by d H d / 2; the directions are those that were really taken."""
    loss, g, H = quadratic(lift=6.0)
    model, watch = Point(), Watch(lambda m, b: loss(m, b)[0] / 3)
    found = lf.flatness(model, watch, [torch.ones(1)], directions=5, distance=0.4, tau=0.01, seed=2)
    origin = flat(model.parameters())
    steps = [seen - origin for seen in watch.seen[3:]]
    assert (found.evaluations, len(steps)) == (21, 20)
    rises = [float(d @ H @ d / 2) for d in steps[3::4]]
    assert found.rises == pytest.approx(rises)
    assert found.mean_rise == pytest.approx(np.mean(rises))
    assert found.mean_rise_stderr == pytest.approx(np.std(rises, ddof=1) / 5**0.5)
    assert found.centre == pytest.approx(2.0)
    assert found.mean_rise > 0.01
    assert found.basin_radius == pytest.approx(0.4 * (0.01 / found.mean_rise) ** 0.5, rel=0.02)
    np.testing.assert_allclose(found.losses[:, -1], [2 + float(g @ d + d @ H @ d / 2) for d in steps[3::4]])
    log = found.log()
    assert log["landscape/mean_rise"] == found.mean_rise
    assert set(log) == {f"landscape/{n}" for n in ("loss", "mean_rise", "mean_rise_stderr", "basin_radius", "norm")}


def test_reference_norm_is_what_distance_counts_in() -> None:
    model, batches = network(), some_batches()
    own = lf.scan_line(model, mean_loss, batches, steps=[0.2])
    other = lf.scan_line(model, mean_loss, batches, steps=[0.1], reference_norm=2 * own.along.norm)
    assert other[0] == pytest.approx(own[0], rel=1e-9)
    assert other.along.units == pytest.approx((2 * own.along.norm,))


def test_checkpoints_of_a_module_with_batch_norm() -> None:
    """At the checkpoints the loss is that of the checkpoints, their running statistics included."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)).double()
    states, batches = three_states(model), some_batches()
    names = ("initial", "first", "second")
    checkpoints = dict(zip(names, states, strict=True))
    for method in ("spectral", "grid"):
        found = lf.checkpoint_plane(model, mean_loss, batches, checkpoints=checkpoints, method=method, resolution=9)  # type: ignore[arg-type]
        for name, state in checkpoints.items():
            other = copy.deepcopy(model).eval()
            other.load_state_dict(state)
            assert found.at_checkpoints[name] == pytest.approx(over_all(other, batches), rel=1e-9)
    parameters = dict(model.named_parameters())
    vectors = {name: flat(state[n] for n in parameters) for name, state in checkpoints.items()}
    places = {name: torch.tensor(place, dtype=DOUBLE) for name, place in found.checkpoints.items()}
    for one in names:
        for other_name in names:
            apart = float((vectors[one] - vectors[other_name]).norm())
            assert float((places[one] - places[other_name]).norm()) == pytest.approx(apart)
    assert places["initial"].tolist() == [0.0, 0.0]
    assert places["first"][1] == 0.0
    assert np.isnan(found.losses[~found.inside]).all()
    assert np.isfinite(found.losses[found.inside]).all()


def test_the_checkpoint_plane_is_not_transposed() -> None:
    """A loss that is 10 x, x counted along the first edge: it rises along alphas alone."""
    model, state = Point(), Point().state_dict()
    first = {**state, "weight": state["weight"] + torch.eye(2, 3, dtype=DOUBLE)}
    second = {**state, "bias": state["bias"] + 3.0}

    def loss(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        return 10 * (model.weight - state["weight"]).diagonal().mean(), 1

    found = lf.checkpoint_plane(model, loss, [None], checkpoints=[state, first, second], margin=0.2)
    i, j = np.nonzero(found.inside)
    np.testing.assert_allclose(found.losses[i, j], 10 * found.alphas[i] / 2**0.5, atol=1e-9)
    assert found.error_at_checkpoints == pytest.approx(0.0, abs=1e-9)
    assert found.checkpoints["checkpoint_2"] == pytest.approx((0.0, 18**0.5))


def test_a_step_of_one_along_a_difference_leads_to_the_other_checkpoint() -> None:
    model, batches = network(), some_batches()
    end = {name: tensor + 0.3 for name, tensor in model.state_dict().items()}
    way = lf.checkpoint_difference(model, model.state_dict(), end)
    line = lf.scan_line(model, mean_loss, batches, direction=way, steps=np.linspace(0, 1, 5))
    assert line[0] == pytest.approx(over_all(model, batches))
    model.load_state_dict(end)
    assert line[-1] == pytest.approx(over_all(model, batches), rel=1e-12)


def test_results_are_saved_whole(tmp_path: Path) -> None:
    model, batches = network(), some_batches()
    surface = lf.scan_plane(model, mean_loss, batches, distance=0.2, resolution=5)
    surface.save_json(tmp_path / "surface.json")
    saved = json.loads((tmp_path / "surface.json").read_text())
    assert saved["losses"] == surface.losses.tolist()
    assert saved["what"].startswith("losses[i, j] = L(theta + alphas[i] d + betas[j] e)")
    assert saved["evaluated"]["points"] == surface.evaluated.points.tolist()
    assert saved["evaluated"]["error"] == surface.error
    assert saved["along"]["description"].startswith("random directions of the weights")
    with pytest.raises(AttributeError):
        surface.losses = surface.losses.T  # type: ignore[misc]


def test_progress_hears_of_every_evaluation() -> None:
    told: list[None] = []
    surface = lf.scan_plane(network(), mean_loss, some_batches(), distance=0.1, progress=lambda: told.append(None))
    assert len(told) == surface.evaluations


def test_every_public_name_is_there() -> None:
    for name in lf.__all__:
        assert getattr(lf, name).__doc__
