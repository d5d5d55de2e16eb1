"""Does the shape of the loss landscape decide how much a large language model forgets?

`llm_forgetting.experiment.run_experiment` is the whole chain; the command line is a thin shell over it. For one's own model and
training script (any torch module or PEFT model, any loss, any batches) there are the names below:

    import llm_forgetting as lf

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
    "Flatness",
    "FlatnessCallback",
    "ForecastOfStep",
    "HessianSpectrum",
    "Line",
    "Surface",
    "Trajectory",
    "UserError",
    "checkpoint_difference",
    "checkpoint_plane",
    "flatness",
    "forecast",
    "hessian_spectrum",
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
