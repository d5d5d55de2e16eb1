"""Does the shape of the loss landscape decide how much a large language model forgets?

    import llm_forgetting as lf

    run = lf.Experiment("quickstart", tasks=["abstract_algebra", "anatomy"], lora={"rank": 16}).run()
    run.answer, run.forgotten(), run.scores, run.surface(1)  # a sentence, an estimate, a pandas frame, a loss surface
    lf.open_run("outputs/experiment_20260101_120000")  # the same of a run that is finished
    lf.Study("studies/toy.yaml").run(workers=2).associations  # many runs, and what goes with forgetting in them

For one's own model and training script (any torch module or PEFT model, any loss, any batches):

    surface = lf.scan_plane(model, loss, batches)                        # losses[i, j] = L(theta + alphas[i] d + betas[j] e)
    line = lf.scan_line(model, loss, batches, direction="gradient")
    bowls = lf.checkpoint_plane(model, loss, {"old": a, "new": b}, checkpoints=[before, between, after])
    flat = lf.flatness(model, loss, batches)                             # mean rise with its standard error
    spectrum = lf.hessian_spectrum(model, loss, batches)                 # eigenvalues, trace, spectral density
    step = lf.forecast(model, loss, batches, direction=lf.checkpoint_difference(model, before, after))
    trainer.add_callback(lf.FlatnessCallback(loss, batches, every=50))

They leave the model as it was, bit for bit. Nothing is imported before it is used: `import llm_forgetting` needs no torch.
"""

from importlib import import_module as _import
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_forgetting.api.experiment import Experiment
    from llm_forgetting.api.run_results import Estimate, RunResults, open_run
    from llm_forgetting.api.study import Study, StudyResults, open_study
    from llm_forgetting.config import ExperimentConfig
    from llm_forgetting.errors import UserError
    from llm_forgetting.own_models.callback import FlatnessCallback
    from llm_forgetting.own_models.checkpoint_surface import checkpoint_plane
    from llm_forgetting.own_models.checkpoints import checkpoint_difference
    from llm_forgetting.own_models.flatness import flatness
    from llm_forgetting.own_models.line import scan_line
    from llm_forgetting.own_models.plane import scan_plane
    from llm_forgetting.own_models.results import CheckpointSurface, Flatness, Line, Surface, Trajectory
    from llm_forgetting.own_models.second_order import ForecastOfStep, HessianSpectrum, forecast, hessian_spectrum

_HOMES = {
    "Estimate": "api.run_results",
    "Experiment": "api.experiment",
    "ExperimentConfig": "config",
    "RunResults": "api.run_results",
    "Study": "api.study",
    "StudyResults": "api.study",
    "open_run": "api.run_results",
    "open_study": "api.study",
    "UserError": "errors",
    "FlatnessCallback": "own_models.callback",
    "checkpoint_plane": "own_models.checkpoint_surface",
    "checkpoint_difference": "own_models.checkpoints",
    "ForecastOfStep": "own_models.second_order",
    "HessianSpectrum": "own_models.second_order",
    "forecast": "own_models.second_order",
    "hessian_spectrum": "own_models.second_order",
    "flatness": "own_models.flatness",
    "scan_line": "own_models.line",
    "scan_plane": "own_models.plane",
    "CheckpointSurface": "own_models.results",
    "Flatness": "own_models.results",
    "Line": "own_models.results",
    "Surface": "own_models.results",
    "Trajectory": "own_models.results",
}
__all__ = [
    "CheckpointSurface",
    "Estimate",
    "Experiment",
    "ExperimentConfig",
    "Flatness",
    "FlatnessCallback",
    "ForecastOfStep",
    "HessianSpectrum",
    "Line",
    "RunResults",
    "Study",
    "StudyResults",
    "Surface",
    "Trajectory",
    "UserError",
    "checkpoint_difference",
    "checkpoint_plane",
    "flatness",
    "forecast",
    "hessian_spectrum",
    "open_run",
    "open_study",
    "scan_line",
    "scan_plane",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llm_forgetting' has no attribute {name!r}")
    value = getattr(_import(f"llm_forgetting.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
