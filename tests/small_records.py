"""A run of two tasks, written down by hand: every number is here to be read, none was computed by the package."""

import math

import numpy as np

from llm_forgetting.config.sections import DataConfig, ExperimentConfig, ModelConfig
from llm_forgetting.curvature.records import (
    AverageCase,
    CriticalSharpness,
    Divergence,
    ForecastRecord,
    Sharpness,
    SpectralDensity,
    SpectrumRecord,
    TaskForecast,
    WorstCase,
)
from llm_forgetting.curvature.results import Eigenvalue, Trace
from llm_forgetting.forgetting.intervals import Interval, Proportion
from llm_forgetting.forgetting.mean_intervals import Mean
from llm_forgetting.forgetting.measures import Estimate, MeasureForgetting, TaskForgetting
from llm_forgetting.forgetting.records import ForgettingBySplit, SplitForgetting, TextDrift
from llm_forgetting.landscape.metrics import MeanRise, SurfaceMetrics
from llm_forgetting.landscape.records import (
    BasinRadius,
    CheckpointLandscape,
    FitError,
    FitSummary,
    GaugeSelfTest,
    LineProfiles,
    TaskSurface,
)
from llm_forgetting.results import (
    Environment,
    GuardReport,
    InterventionRecord,
    ModelDescription,
    Protocol,
    Results,
    TrainingRecord,
    TrainingStep,
)

TASKS = ("first", "second")
CHECKPOINTS = ("initial", "after_task1", "after_task2")
CORRECT = {"train": ((3, 2), (10, 4), (7, 9)), "test": ((2, 3), (8, 3), (5, 6))}
"""Right answers of 10, by split: a row per checkpoint, a column per task."""
LOSSES = {"train": ((1.5, 1.25), (0.25, 1.125), (0.75, 0.5)), "test": ((1.5, 1.5), (0.5, 1.75), (math.nan, 1.0))}
"""Mean losses, laid out in the same way; one diverged."""
LETTER_MASS = ((0.5, 0.625), (0.875, 0.75), (0.9375, 0.96875))
LOW, HIGH = 0.125, 0.0625
"""How far every interval reaches below and above its value."""


def interval(value: float) -> Interval:
    return Interval(value - LOW, value + HIGH, method="by hand")


def measured(measure: str, split: str) -> MeasureForgetting:
    """Task 1 is forgotten by as much as its last cell differs from its own; nothing else is told."""
    cells: tuple[tuple[Proportion | Mean, ...], ...]
    if measure == "accuracy":
        cells = tuple(
            tuple(Proportion(n, 10, interval(n / 10), n / 10, 0.15625) for n in row) for row in CORRECT[split]
        )
        lost = {"train": 0.3, "test": 0.3}[split]
    else:
        cells = tuple(tuple(Mean(loss, 0.03125, 10, None) for loss in row) for row in LOSSES[split])
        lost = {"train": 0.5, "test": math.nan}[split]
    unknown = Estimate(None, reason="not told")
    task = TaskForgetting(1, "first", 10, Estimate(lost, 0.0625, interval(lost)), unknown, unknown, None)
    return MeasureForgetting(measure, cells, (task,), (), unknown, unknown, unknown, unknown)  # type: ignore[arg-type]


def split_forgetting(split: str) -> SplitForgetting:
    accuracy, loss = measured("accuracy", split), measured("loss", split)
    return SplitForgetting(CHECKPOINTS, split, TASKS, accuracy, loss, np.array(LETTER_MASS), ())


def surface(rise: float, *, fitted: bool) -> TaskSurface:
    """A surface of 3 x 3 cells of mean rise `rise`; its other numbers are the same for all."""
    loss = np.array([[3.0, 2.0, 3.0], [1.0, 0.25, 1.0], [3.0, 2.0, 3.0]])
    metrics = SurfaceMetrics(
        centre=0.25, maximum=3.0, standard_deviation=1.0, curvature_centre=3.5, curvature_centre_error=0.5 if fitted else None,
        curvature_inner=4.0, curvature_inner_error=0.5 if fitted else None, range=2.75, centre_eigenvalues=(1.5, 3.5),
        share_within=0.125, flat=False, non_finite_cells=0,
    )  # fmt: skip
    steps, losses = np.array([-1.0, 0.0, 1.0]), np.array([[1.0, 0.25, 1.0]])
    lines = LineProfiles(steps, losses, losses[0], np.zeros(3), steps, BasinRadius(0.1, 0.375 if fitted else None))
    error = FitError(largest=0.015625, relative=0.0078125, wrong_letters=0.0) if fitted else None
    return TaskSurface(
        items=("a", "b"), loss=loss, four_way_loss=loss, accuracy=loss * 0, letter_mass=loss * 0, error=error,
        metrics=metrics, mean_rise=MeanRise(rise, 0.25, 2), lines=lines, measured_loss=loss.reshape(-1),
    )  # fmt: skip


def landscape(rises: dict[str, float], *, fitted: bool = True) -> CheckpointLandscape:
    """A landscape at distance 1 in adapter space, with a surface for every task in `rises`."""
    steps = np.array([-1.0, 0.0, 1.0])
    return CheckpointLandscape(
        space="adapter", method="spectral" if fitted else "grid", distance=1.0, alphas=steps, betas=steps,
        adapter_norm=2.0, reference_norm=4.0, relative_scale=0.5, update_norm=3.0, direction_cosine=0.0, evaluations=9,
        fit=FitSummary(degree=2, evaluations=9, check_points=3, tolerance=0.01, converged=True) if fitted else None,
        note=None, points=np.zeros((9, 2)),
        surfaces={task: surface(rise, fitted=fitted) for task, rise in rises.items()},
        gauge_self_test=GaugeSelfTest(2, (1.0, 1.0), 0.0, (1.0, 1.0), 0.0, 1e-6, passed=True),
    )  # fmt: skip


def spectrum() -> SpectrumRecord:
    sharpness = Sharpness(
        items_per_step=2,
        worst_case=WorstCase(radius=0.05, one_step=0.5, ascent=0.75, steps=5),
        average_case=AverageCase(radius=0.05, value=0.1875, stderr=0.0625, samples=4),
        critical=CriticalSharpness(value=None, step=None, slope=-1.0, curvature=2.0, longest=8.0),
    )
    return SpectrumRecord(
        items=("a", "b"), dimension=3, gradient_norm=0.375, largest=(Eigenvalue(8.0, 0.125), Eigenvalue(2.0, 0.25)),
        smallest=(Eigenvalue(-1.0, 0.5),), trace=Trace(9.0, 0.75), trace_by_module={}, weights=None,
        density=SpectralDensity(np.array([-1.0, 2.0, 8.0]), np.array([0.25, 0.5, 0.25])),
        repeated_product_difference=0.0, difference_error=None, sharpness=sharpness,
    )  # fmt: skip


def forecast(second_order: float) -> TaskForecast:
    return TaskForecast(("a", "b"), 0.25, -0.5, 3.0, second_order, 0.625, None)


def training(task: str, losses: tuple[float, ...]) -> TrainingRecord:
    log = tuple(
        TrainingStep(epoch=n / 2, step=n, loss=loss, grad_norm=2.0, learning_rate=0.01)
        for n, loss in enumerate(losses, start=1)
    )
    return TrainingRecord(task, len(losses), InterventionRecord(None, {}, None, 1.0), "", log)


def small_results() -> Results:
    """The run; the first landscape has fits, in the second every cell was evaluated."""
    data = DataConfig(tasks=("anatomy", "astronomy"))
    return Results(
        schema_version=1,
        answer="After fine-tuning on second, accuracy on the 10 trained first items fell from 10 to 7.",
        config=ExperimentConfig(model=ModelConfig(name="embedded"), data=data),
        versions={"python": "3.11.0", "llm-forgetting": "0.1.0"},
        environment=Environment("nowhere", "none", 2),
        config_fingerprint="0" * 64,
        task_names=TASKS,
        source="by hand",
        tasks=(),
        model=ModelDescription("embedded", "LlamaForCausalLM", 1000, 100, 4, 400, "float32", "cpu", 1),
        initial_adapter_sha256="0" * 64,
        guards=GuardReport(2, 2, 0.0, 1e-4, 0.0, 0.5, (1, 2, 3, 4)),
        protocol=Protocol("LoRA", "AdamW", "trained on all", "trained items", 1),
        warnings=(),
        training=(training("first", (1.5, 0.5)), training("second", (1.25, 0.75, 0.5))),
        forgetting=ForgettingBySplit(split_forgetting("train"), split_forgetting("test")),
        spurious={},
        text=TextDrift(0, {}, {}),
        landscapes={
            "after_task1": landscape({"first": 1.5, "second": math.nan}),
            "after_task2": landscape({"first": 2.5, "second": -0.5}, fitted=False),
        },
        landscape_comparison=(),
        paths=(),
        checkpoint_plane=None,
        between_notes=(),
        curvature={"after_task1": spectrum()},
        forecasts=(
            ForecastRecord(
                start="after_task1",
                to="after_task2",
                update_norm=1.5,
                relative_critical=None,
                divergence=Divergence(0.5, 0.125, 2),
                tasks={"first": {"train": forecast(1.0), "test": forecast(2.0)}},
                rivals=None,
            ),
        ),
        figures=("landscape_overview.png",),
        timings={},
    )
