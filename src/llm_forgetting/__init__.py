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
    from llm_forgetting.config.sections import ExperimentConfig
    from llm_forgetting.curvature.results import ForecastOfStep, HessianSpectrum
    from llm_forgetting.errors import UserError
    from llm_forgetting.experiment.api import Experiment
    from llm_forgetting.experiment.run_results import Estimate, RunResults, open_run
    from llm_forgetting.landscape.results import CheckpointSurface, Flatness, Line, Surface, Trajectory
    from llm_forgetting.models.any_module.callback import FlatnessCallback
    from llm_forgetting.models.any_module.checkpoint_plane import checkpoint_plane
    from llm_forgetting.models.any_module.checkpoints import checkpoint_difference
    from llm_forgetting.models.any_module.flatness import flatness
    from llm_forgetting.models.any_module.hessian import forecast, hessian_spectrum
    from llm_forgetting.models.any_module.line import scan_line
    from llm_forgetting.models.any_module.plane import scan_plane
    from llm_forgetting.study.api import Study, StudyResults, open_study

__version__ = "0.1.0"

_HOMES = {
    "Estimate": "experiment.run_results",
    "Experiment": "experiment.api",
    "ExperimentConfig": "config.sections",
    "RunResults": "experiment.run_results",
    "Study": "study.api",
    "StudyResults": "study.api",
    "open_run": "experiment.run_results",
    "open_study": "study.api",
    "UserError": "errors",
    "FlatnessCallback": "models.any_module.callback",
    "checkpoint_plane": "models.any_module.checkpoint_plane",
    "checkpoint_difference": "models.any_module.checkpoints",
    "ForecastOfStep": "curvature.results",
    "HessianSpectrum": "curvature.results",
    "forecast": "models.any_module.hessian",
    "hessian_spectrum": "models.any_module.hessian",
    "flatness": "models.any_module.flatness",
    "scan_line": "models.any_module.line",
    "scan_plane": "models.any_module.plane",
    "CheckpointSurface": "landscape.results",
    "Flatness": "landscape.results",
    "Line": "landscape.results",
    "Surface": "landscape.results",
    "Trajectory": "landscape.results",
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
