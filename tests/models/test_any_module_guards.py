"""The public API as a guest: it leaves no trace, also after an error or Ctrl-C, and says in one line what does not fit."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from runs import ROOT
from small_models import Batch, Everything, Point, draw_like, mean_loss, network, some_batches, three_states
from torch.utils.data import DataLoader, TensorDataset

import llm_forgetting as lf

pytestmark = pytest.mark.usefixtures("one_thread")


class Busy(torch.nn.Module):
    """Batch normalisation, dropout, a buffer that every forward changes, and one that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)
        )
        self.register_buffer("forwards", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))
        self.layers[3].weight.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        self.last = torch.rand(2) + random.random() + np.random.rand()
        return torch.as_tensor(self.layers(inputs))


def busy_model() -> Busy:
    torch.manual_seed(3)
    model = Busy().train()
    model.layers[0].eval()
    mean_loss(model, (torch.randn(6, 3), torch.randint(3, (6,)))).backward()
    return model


CALLS: dict[str, Callable[..., Any]] = {
    "plane": lf.scan_plane,
    "line": lambda *args: lf.scan_line(*args, direction="gradient"),
    "given": lambda model, *args: lf.scan_line(model, *args, direction=draw_like(model, 0)),
    "flatness": lambda *args: lf.flatness(*args, directions=2),
    "spectrum": lambda *args: lf.hessian_spectrum(
        *args, lanczos_steps=4, density_runs=1, density_steps=2, trace_probes=2
    ),
    "forecast": lambda model, *args: lf.forecast(model, *args, direction=draw_like(model, 0)),
    "checkpoints": lambda model, *args: lf.checkpoint_plane(model, *args, checkpoints=three_states(model)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("ending", [None, ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_scan_leaves_no_trace(call: str, ending: type[BaseException] | None) -> None:
    model, batches = busy_model(), some_batches(torch.float32)
    before, count = Everything(model), iter(range(1000))

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        torch.rand(1), random.random(), np.random.rand()
        if ending and next(count) == 14:  # the first evaluations are over
            raise ending
        return mean_loss(model, batch)

    if ending:
        with pytest.raises(ending):
            CALLS[call](model, loss, batches)
    else:
        CALLS[call](model, loss, batches)
    before.assert_same(model)


@pytest.mark.parametrize("call", [call for call in CALLS if call != "spectrum"])  # which moves nothing
def test_ctrl_c_waits_while_parameters_are_on_their_way(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed twice between the parameters of a move, and again while they are put back."""
    model, batches = busy_model(), some_batches(torch.float32)
    before, copies = Everything(model), iter(range(10000))
    put = torch.Tensor.copy_

    def interrupted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if next(copies) >= 7:
            os.kill(os.getpid(), signal.SIGINT)
        return put(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CALLS[call](model, mean_loss, batches)
    monkeypatch.undo()
    before.assert_same(model)


def test_ctrl_c_during_a_forward_is_heard_at_once() -> None:
    model, forwards, gone_on = network(), iter(range(100)), []

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if next(forwards) == 8:
            os.kill(os.getpid(), signal.SIGINT)
            gone_on.append(batch)
        return mean_loss(model, batch)

    before = Everything(model)
    with pytest.raises(KeyboardInterrupt):
        lf.scan_plane(model, loss, some_batches())
    assert not gone_on
    before.assert_same(model)


def shuffled() -> DataLoader[Any]:
    x, y = some_batches(sizes=(12,))[0]
    return DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)


class Reordered:
    """A loader of somebody's own, whose order is another one every time."""

    def __init__(self) -> None:
        self.batches = some_batches(sizes=(3, 3, 3, 3))

    def __iter__(self) -> Iterator[Batch]:
        self.batches = self.batches[1:] + self.batches[:1]
        return iter(self.batches)


def test_batches_may_be_a_loader_or_a_generator() -> None:
    model, batches = network(), some_batches(sizes=(4, 4, 4))
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    expected = lf.scan_line(model, mean_loss, batches, steps=[0.0, 0.5]).losses
    for same in (DataLoader(TensorDataset(x, y), batch_size=5), (batch for batch in batches), tuple(batches)):
        assert lf.scan_line(model, mean_loss, same, steps=[0.0, 0.5]).losses == pytest.approx(expected, rel=1e-12)


def bad(**options: Any) -> Callable[[], Any]:
    return lambda: lf.scan_plane(network(), mean_loss, some_batches(), **options)


def on(batches: Any, loss: Any = mean_loss, model: Any = None) -> Callable[[], Any]:
    return lambda: lf.scan_plane(network() if model is None else model, loss, batches)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a shuffling loader": (on(shuffled()), "this loader shuffles: make one with shuffle=False"),
    "a loader that shuffles otherwise": (on(Reordered()), "two passes over the batches must give the same losses"),
    "by name": (on({"old": Reordered()}), "two passes over the batches of old"),
    "no batches": (on([]), "the batches must hold something to predict"),
    "a single batch": (on({"input_ids": torch.zeros(1)}), r"this is a single batch: \[batch\]"),
    "no iterable": (on(3), "must be a list or loader of batches, were int"),
    "pairs without a loss": (on(some_batches(), None), r"need a loss: pass loss\(model, batch\)"),
    "a loss that is no tensor": (on(some_batches(), lambda m, b: "low"), "must return a tensor or .* returned str"),
    "a mean over who knows what": (on([None], lambda m, b: torch.ones(())), r"return \(sum, count\)"),
    "bfloat16": (on(some_batches(torch.bfloat16), model=network(torch.bfloat16)), "0.weight is bfloat16, in which a small"),
    "nothing to move": (on(some_batches(), model=network().requires_grad_(False)), "it has none; name what is to be moved"),
    "distance": (bad(distance=0.0), "distance must be greater than 0"),
    "resolution": (bad(resolution=4), "resolution must be odd"),
    "method": (bad(method="cubic"), "method must be 'spectral' or 'grid'"),
    "budget": (bad(max_evaluations=22), "max_evaluations must be at least 23"),
    "tolerance": (bad(tolerance=0.0), "tolerance must be greater than 0"),
    "space": (bad(space="adapter"), "needs a PEFT model"),
    "directions": (bad(directions="steepest"), "directions must be 'random', 'gradient' or given"),
    "one direction": (bad(directions=draw_like(network(), 0)), "2 directions are needed, 1 were given"),
    "a parameter that is none": (bad(directions=({"x": torch.ones(1)},) * 2), "'x' is none"),
    "another shape": (bad(directions=({"0.bias": torch.ones(3)},) * 2), r"0.bias is \(3,\), must be \(4,\)"),
    "no direction": (bad(directions=({"0.bias": torch.zeros(4)},) * 2), "directions must not be 0"),
    "a pattern": (bad(parameters=["0.*", "nothing*"]), "'nothing\\*'.* did not; the first ones are 0.weight"),
    "a unit for given directions": (
        bad(directions=(draw_like(network(), 0), draw_like(network(), 1)), reference_norm=2.0),
        "are for random and gradient directions",
    ),
    "normalise": (bad(normalise="filter"), "is for given directions"),
    "one flat direction": (lambda: lf.flatness(network(), mean_loss, some_batches(), directions=1), "at least 2"),
    "two checkpoints": (
        lambda: lf.checkpoint_plane(network(), mean_loss, some_batches(), checkpoints=[{}, {}]), "must be three"
    ),
    "equal checkpoints": (
        lambda: lf.checkpoint_plane(network(), mean_loss, some_batches(), checkpoints=[network().state_dict()] * 3),
        "must differ",
    ),
    "another model's checkpoint": (
        lambda: lf.checkpoint_plane(network(), mean_loss, some_batches(), checkpoints=[{"x": torch.ones(1)}] * 3),
        "must be a state dict of this model, 1 of its tensors are not: x is",
    ),
    "a folder for a plain module": (
        lambda: lf.checkpoint_plane(network(), mean_loss, some_batches(), checkpoints=["a", "b", "c"]),
        "must be its state dict, was str",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case: str) -> None:
    call, reason = REFUSED[case]
    with pytest.raises(lf.UserError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_gradient_of_zero_is_no_direction() -> None:
    with pytest.raises(lf.UserError, match="needs a gradient, it is 0 here"):
        lf.scan_line(Point(), lambda m, b: 0 * m.weight.sum(), [torch.ones(1)], direction="gradient")


@pytest.mark.process
def test_importing_the_package_is_cheap_and_plain_modules_need_no_peft() -> None:
    program = "\n".join([
        "import sys, llm_forgetting as lf",
        "assert not {'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)",
        "assert set(lf.__all__) <= set(dir(lf))",
        "import torch",
        "model = torch.nn.Linear(2, 1)",
        "lf.flatness(model, lambda m, x: m(x).square().mean(), [torch.ones(3, 2)], directions=2)",
        "assert not {'peft', 'transformers'} & set(sys.modules)",
        "try: lf.nothing",
        "except AttributeError: pass",
        "else: raise SystemExit(1)",
    ])  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
