"""Curvature and forecast that are stopped at any product go on at the next, to the same bits."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import fill_adapter, load, make_encoded

from llm_forgetting.config.measurements import CurvatureConfig
from llm_forgetting.curvature import replay as replays
from llm_forgetting.curvature.operators import Weights
from llm_forgetting.curvature.records import ForecastPhase, SpectrumRecord
from llm_forgetting.curvature.replay import Replay
from llm_forgetting.experiment.analysis import forecast, spectrum
from llm_forgetting.files import encode
from llm_forgetting.models.hessian.difference_products import DifferenceProducts
from llm_forgetting.models.hessian.products import supports_tangent_pass
from llm_forgetting.models.hessian.tangent_products import TangentProducts

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = CurvatureConfig(
    spectrum=True, lanczos_steps=4, eigenvalues=1, density_runs=2, density_steps=3, trace_probes=2, weight_probes=2,
    power_steps=4, sharpness_directions=2, ascent_steps=2,
)  # fmt: skip


class StopError(Exception):
    """The process ends here."""


@dataclasses.dataclass
class Counter:
    """Counts calls of products; before the call after `last` the process ends."""

    calls: int = 0
    last: int | None = None

    def counted(self, product: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self.calls == self.last:
                raise StopError
            self.calls += 1
            return product(*arguments)

        return call


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    found = Counter()
    for kind in (TangentProducts, DifferenceProducts):
        for name in ("hessian", "along_update", "weight_hessian", "gradient"):
            monkeypatch.setattr(kind, name, found.counted(getattr(kind, name)))
    monkeypatch.setattr(spectrum, "score", found.counted(spectrum.score))
    return found


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> Any:
    loaded = load(llama_folder, target_modules=("q_proj",))
    assert supports_tangent_pass(loaded)  # one product that is not counted
    return loaded


def resumed(counter: Counter, compute: Callable[[], Any], last: int) -> tuple[Any, int]:
    """What comes out after a stop at call `last`, and how many calls the second process made."""
    counter.calls, counter.last = 0, last
    with pytest.raises(StopError):
        compute()
    counter.calls, counter.last = 0, None
    return compute(), counter.calls


@pytest.mark.slow
@pytest.mark.parametrize("products", ["exact", "differences"])
def test_a_spectrum_that_is_stopped_goes_on_at_the_next_product(
    model: Any, counter: Counter, tmp_path: Path, products: Any
) -> None:
    items, config = make_encoded(model, 2), dataclasses.replace(SMALL, products=products)
    steps: list[int] = []

    def compute(journal: Path | None) -> SpectrumRecord:
        steps.clear()
        return spectrum.analyse_curvature(
            model, items, config, batch_size=2, advance=lambda n, text: steps.append(n), journal=journal
        )

    whole = compute(None)
    total = counter.calls
    assert sum(steps) == spectrum.curvature_evaluations(config)
    # In a shorter run, a probe of the trace, the ascent in the weights, and the sharpness.
    for last in (8, 14, 21, total - 1) if products == "exact" else (2,):
        again, calls = resumed(counter, lambda last=last: compute(tmp_path / str(last)), last)
        assert encode(again) == encode(whole)
        assert sum(steps) == spectrum.curvature_evaluations(config)
        assert calls == total - last, last


@pytest.mark.slow
def test_a_forecast_that_is_stopped_goes_on_at_the_next_task_and_split(
    model: Any, counter: Counter, tmp_path: Path
) -> None:
    items = [make_encoded(model, 3, seed=seed) for seed in range(5)]
    first = model.adapter_factors()
    fill_adapter(model.peft_model, seed=1)
    second = model.adapter_factors()

    def compute(journal: Path | None) -> ForecastPhase:
        return forecast.analyse_forecast(
            model,
            ("after_task1", first),
            ("after_task2", second),
            old={name: {"train": items[n], "test": items[n + 1]} for n, name in enumerate(("oak", "elm"))},
            new=items[4],
            path=None,
            config=CurvatureConfig(),
            tau=0.1,
            batch_size=3,
            advance=lambda n, text: None,
            journal=journal,
        )

    whole = compute(None)
    assert counter.calls == 4
    for last in range(4):
        again, calls = resumed(counter, lambda last=last: compute(tmp_path / f"{last}.journal"), last)
        assert encode(again) == encode(whole)
        assert calls == 4 - last


def test_a_damaged_array_is_computed_again(tmp_path: Path) -> None:
    made = [torch.randn(5, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    first = Replay(tmp_path)
    for array in made:
        first.array(lambda array=array: array)
    file = tmp_path / "00001"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    second = Replay(tmp_path)
    again = [second.array(lambda array=array: array) for array in made]
    assert second.computed == 1
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(made, again, strict=True))


def test_of_what_numbers_are_made_of_nothing_stays(tmp_path: Path) -> None:
    replay = Replay(tmp_path)
    vectors = [torch.ones(3), 2 * torch.ones(3)]
    numbers = replay.numbers(lambda: [float(replay.array(lambda: v).sum()) for v in vectors])  # noqa: B023
    assert numbers == [3.0, 6.0]
    assert [path.name for path in tmp_path.iterdir()] == ["00000"]
    assert Replay(tmp_path).numbers(lambda: pytest.fail("it is there")) == [3.0, 6.0]


def test_a_state_is_read_back_with_its_number_of_steps(tmp_path: Path) -> None:
    one, other = Weights(a=torch.ones(2, 2), b=torch.zeros(1)), Weights(a=torch.eye(2), b=torch.ones(1))
    state = Replay(tmp_path).state()
    assert state.read() is None
    for done in (1, 2):
        state.write(done, [one, other])
    found = Replay(tmp_path).state().read()
    assert found is not None
    assert found[0] == 2
    assert [sorted(vector) for vector in found[1]] == [["a", "b"], ["a", "b"]]
    assert torch.equal(found[1][1]["a"], torch.eye(2))


def test_where_the_disk_is_too_small_nothing_is_kept_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3e9}))
    said: list[str] = []
    replays.replay_in(tmp_path / "big.journal", 2e9, said.append)
    assert not (tmp_path / "big.journal").exists()
    assert said == [
        "big.journal would take 2.0 GB of 3.0 GB of free disk, so nothing is kept before the phase is done: if it is stopped, "
        "it begins anew"
    ]
    replays.replay_in(tmp_path / "fits.journal", 1.2e9, said.append)
    assert (tmp_path / "fits.journal").is_dir()
    assert "takes up to 1.2 GB of disk until the phase is done" in said[1]
