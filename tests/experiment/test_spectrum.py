"""The curvature phases on a tiny model, their tables and their figures."""

import copy
import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from runs import Shell
from tiny_models import load, make_encoded

from llm_forgetting.config.measurements import CurvatureConfig
from llm_forgetting.curvature.operators import Weights
from llm_forgetting.curvature.records import ForecastPhase, SpectrumRecord
from llm_forgetting.experiment.analysis.forecast import compare_with_rival_predictors
from llm_forgetting.experiment.analysis.spectrum import analyse_curvature, curvature_evaluations
from llm_forgetting.files import from_plain
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.models.hessian.coordinates import Coordinates, random_update
from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.scoring import score
from llm_forgetting.report.figures.run import draw_landscapes
from llm_forgetting.report.figures.spectra import density_figure, trace_figure
from llm_forgetting.report.figures.style import house_style, save
from llm_forgetting.report.tables.curvature import curvature_table, forecast_table
from llm_forgetting.report.views.spectra import spectrum_views
from llm_forgetting.results import Results

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = CurvatureConfig(
    spectrum=True, lanczos_steps=40, density_runs=1, density_steps=10, trace_probes=20, weight_probes=200, power_steps=30,
    eigenvalues=2, sharpness_directions=4, ascent_steps=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def analysed(llama_folder: Path) -> tuple[Any, Any, SpectrumRecord]:
    model = load(llama_folder, target_modules=("q_proj", "v_proj"))
    items = make_encoded(model, 4)
    steps: list[int] = []
    found = analyse_curvature(model, items, CONFIG, batch_size=4, advance=lambda n, text: steps.append(n))
    assert sum(steps) == curvature_evaluations(CONFIG)
    return model, items, found


@pytest.mark.slow
def test_spectrum_and_trace_are_those_of_the_dense_hessian(analysed: Any) -> None:
    import torch

    model, items, found = analysed
    base = {name: module.factors for name, module in canonicalise(model.adapter_factors()).items()}
    coordinates = Coordinates(base)
    with products_at(model, items, base, method="graph") as products:
        rows = [coordinates.vector(products.hessian(coordinates.step(row))) for row in torch.eye(coordinates.dimension)]
        gradient = coordinates.vector(products.gradient())
    H = torch.stack(rows).double()
    true = torch.linalg.eigvalsh((H + H.T) / 2)
    assert found.dimension == coordinates.dimension
    for k, entry in enumerate(found.largest):
        assert entry.value == pytest.approx(float(true[-1 - k]), rel=1e-4)
    assert found.smallest[0].value == pytest.approx(float(true[0]), rel=1e-3)
    assert abs(found.trace.value - float(H.trace())) < 4 * found.trace.stderr + 1e-4
    for name, (block,) in coordinates.blocks.items():
        trace = found.trace_by_module[name]
        assert abs(trace.value - float(H.diagonal()[block].sum())) < 4 * trace.stderr + 1e-3
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert found.repeated_product_difference == 0
    assert sum(found.density.weights) == pytest.approx(1)
    critical, g = found.sharpness.critical, gradient.double()
    assert critical.slope == pytest.approx(float(g.norm()), rel=1e-4)
    assert critical.curvature == pytest.approx(float(g @ H @ g / (g @ g)), rel=1e-3)


@pytest.mark.slow
def test_trace_and_largest_eigenvalue_in_the_merged_weights(analysed: Any) -> None:
    import torch

    model, items, found = analysed
    base = model.adapter_factors()
    shapes = {name: (len(pair.B), pair.A.shape[1]) for name, pair in base.items()}
    sizes = [a * b for a, b in shapes.values()]
    rows = []
    with products_at(model, items, base, method="graph") as products:
        for row in torch.eye(sum(sizes)):
            parts = row.split(sizes)
            V = {name: part.view(shape).clone() for (name, shape), part in zip(shapes.items(), parts, strict=True)}
            rows.append(torch.cat([part.flatten() for part in products.weight_hessian(Weights(V)).values()]))
    H = torch.stack(rows).double()
    weights = found.weights
    assert weights.dimension == sum(sizes)
    largest = float(torch.linalg.eigvalsh((H + H.T) / 2)[-1])
    assert weights.largest.value == pytest.approx(largest, rel=0.01)
    assert weights.largest.value <= largest * (1 + 1e-4)
    assert abs(weights.trace.value - float(H.trace())) < 4 * weights.trace.stderr


@pytest.mark.slow
def test_differences_of_gradients_come_close_and_say_so(analysed: Any) -> None:
    model, items, exact = analysed
    config = dataclasses.replace(
        CONFIG, products="differences", lanczos_steps=10, trace_probes=4, weight_probes=2, density_runs=0
    )
    steps: list[int] = []
    found = analyse_curvature(model, items, config, batch_size=4, advance=lambda n, text: steps.append(n))
    assert sum(steps) == curvature_evaluations(config)
    assert 0 < found.difference_error < 0.1
    assert exact.difference_error is None
    assert found.weights.largest.value == pytest.approx(exact.weights.largest.value, rel=0.05)
    assert found.largest[0].value == pytest.approx(exact.largest[0].value, rel=10 * found.difference_error)


def test_random_updates_have_independent_entries_of_variance_one() -> None:
    import torch

    from llm_forgetting.landscape.gauge import Factors

    like: WeightUpdate = WeightUpdate({"a": Factors(torch.zeros(3, 2), torch.zeros(2, 2))})
    drawn = [random_update(like, seed=1, number=n, rank=16)["a"] for n in range(4000)]
    entries = torch.stack([(pair.B @ pair.A).flatten() for pair in drawn])
    torch.testing.assert_close(entries.T @ entries / 4000, torch.eye(6), atol=0.1, rtol=0)


@pytest.mark.slow
def test_sharpness_is_that_of_the_loss(analysed: Any) -> None:
    model, items, found = analysed
    average, worst = found.sharpness.average_case, found.sharpness.worst_case
    assert worst.ascent >= worst.one_step > 0
    assert worst.ascent > abs(average.value)
    assert average.samples == 4
    assert found.sharpness.items_per_step == len(items)
    critical = found.sharpness.critical
    assert (critical.value is None) == (critical.slope <= 0 or critical.step is None)
    assert float(score(model, items, 4).losses.mean()) > 0  # the model still stands


@pytest.fixture(scope="module")
def run(shell: Shell) -> tuple[Path, dict[str, Any]]:
    """A whole run with everything on."""
    budget = ["--curvature.lanczos_steps", "8", "--curvature.density_runs", "1", "--curvature.density_steps", "4"]
    budget += ["--curvature.trace_probes", "3", "--curvature.weight_probes", "3", "--curvature.power_steps", "2"]
    done = shell.run(
        "--config", shell.tiny, "--curvature.spectrum", "true", *budget, "--output_dir", shell.folder / "spectra"
    )
    assert done.status == 0, done.stderr
    (path,) = (shell.folder / "spectra").glob("experiment_*")
    results = json.loads((path / "results.json").read_text())
    assert "## Curvature (nats)" in (path / "results.md").read_text(encoding="utf-8")
    return path, results


def test_results_and_figures_of_a_whole_run(run: Any, tmp_path: Path) -> None:
    _, results = run
    schema = json.loads(resources.files("llm_forgetting").joinpath("data/results.schema.json").read_text())
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(results)] == []
    assert list(results["curvature"]) == ["after_task1", "after_task2"]
    relative = results["forecasts"][0]["relative_critical"]
    assert (relative["value"] is None) == (relative["slope"] <= 0 or relative["step"] is None)
    rivals = results["forecasts"][0]["rivals"]
    assert rivals["task"] == "synthetic_1"
    weights = results["curvature"]["after_task1"]["weights"]
    distance = results["forecasts"][0]["update_norm"]
    assert rivals["quadratic_bound"] == pytest.approx(weights["largest"]["value"] * distance**2 / 2)
    scale = distance**2 / 2 / weights["dimension"]
    assert rivals["average_rise"]["value"] == pytest.approx(weights["trace"]["value"] * scale)
    drawn = draw_landscapes(from_plain(Results, results), tmp_path, dpi=60)
    assert drawn == results["figures"]
    for name in ("landscape_spectrum.png", "landscape_trace.png"):
        assert name in drawn
        with Image.open(tmp_path / name) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_tables_say_what_was_found(run: Any) -> None:
    _, results = run
    table = forecast_table(from_plain(Results, results))
    (entry,) = results["forecasts"]
    assert len(table.rows) == 2
    found = entry["tasks"]["synthetic_1"]["train"]
    assert table.rows[0][0] == "synthetic 1, trained, after task 1 to after task 2"
    assert float(table.rows[0][4]) == pytest.approx(found["observed"], rel=0.05)
    assert table.rows[1][-1] == "-"
    assert "relative critical sharpness" in table.note
    table = curvature_table(from_plain(Results, results))
    assert [row[0] for row in table.rows] == ["after task 1", "after task 2"]
    exact = copy.deepcopy(results)
    exact["curvature"]["after_task1"]["largest"][0] = {"value": 1.23456, "residual": 1e-9}
    exact["curvature"]["after_task1"]["smallest"][0] = {"value": -1.23456, "residual": 0.1}
    assert curvature_table(from_plain(Results, exact)).rows[0][1] == "-1.23 ± 0.10 to 1.23"
    uncertain = copy.deepcopy(results)
    uncertain["forecasts"][0]["rivals"].update(alignment=None, relative_critical_sharpness=None)
    uncertain["forecasts"][0]["tasks"]["synthetic_1"]["train"]["path"]["validity"]["fraction"] = 1.0
    assert "too uncertain to say" in forecast_table(from_plain(Results, uncertain)).note
    assert forecast_table(from_plain(Results, uncertain)).rows[0][-1] == "the end"


def test_without_a_spectrum_there_are_no_rivals(run: Any) -> None:
    _, results = run
    forecasts = [from_plain(ForecastPhase, entry) for entry in results["forecasts"]]
    (entry,) = compare_with_rival_predictors(forecasts, {})
    assert entry.rivals is None


def test_figures_of_any_number_of_checkpoints(run: Any, tmp_path: Path) -> None:
    _, results = run
    spectra = spectrum_views(from_plain(Results, results))
    assert [spectrum.types for spectrum in spectra] == [spectra[0].types] * 2
    blocks = results["curvature"]["after_task1"]["trace_by_module"]
    assert np.nansum(spectra[0].cells) == pytest.approx(sum(block["value"] for block in blocks.values()))
    for chosen in (spectra[:1], spectra, spectra * 2):
        with house_style():
            figures: list[Figure] = [density_figure(chosen), trace_figure(chosen)]
            for number, figure in enumerate(figures):
                save(figure, tmp_path / f"{len(chosen)}_{number}", 60)
    assert spectrum_views(from_plain(Results, {**results, "curvature": {}})) == []
