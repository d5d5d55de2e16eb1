"""Whether a run fits into a device's memory, and what would make it fit; a run that cannot ends before it begins."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from llm_forgetting.config.methods import methods_key
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.cost.devices import Device, own_device
from llm_forgetting.experiment.cost.lengths import item_lengths, longest_lengths
from llm_forgetting.experiment.cost.needs import NeedsCounter, PhaseNeed
from llm_forgetting.models.language.settings import model_settings, parameters, read_settings
from llm_forgetting.tasks.hub import hub_answers

# Most options that a message names.
MOST_NAMED = 2
# Bytes of Python, PyTorch and CUDA's libraries on the host, and of the largest file that transformers splits weights into.
GPU_REST = 3e9
SHARD = 5e9


@dataclass(frozen=True)
class Option:
    """A change of the configuration, as the command line takes it."""

    text: str
    config: ExperimentConfig


@dataclass(frozen=True)
class Misfit:
    """A phase that does not fit: `required` and `available` bytes, and the changes each of which makes it fit."""

    phase: str
    required: float
    available: float
    device: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        advice = (
            f"set {' or '.join(self.options)}" if self.options else "take a smaller model, or a GPU with more memory"
        )
        return (
            f"{self.phase} needs {self.required / 1e9:.1f} GB of memory, {self.device} has {self.available / 1e9:.1f} GB; "
            f"{advice}"
        )


def in_smallest_batches(config: ExperimentConfig) -> ExperimentConfig:
    """What a run comes down to by itself where memory runs out: it goes on with smaller batches, with the same numbers."""
    return replace(
        config,
        training=replace(config.training, batch_size=1),
        evaluation=replace(config.evaluation, batch_size=1),
        landscape=replace(config.landscape, batch_size=1, points_per_forward=config.landscape.points_per_forward or 1),
        curvature=replace(config.curvature, micro_batch=1),
    )


def misfit(counter: NeedsCounter, config: ExperimentConfig, device: Device) -> Misfit | None:
    """The first phase that cannot be made on `device`, however small its batches become; None where all can."""
    for need in _least_needs(counter, config, device):
        if device.required(need.peak_bytes) > device.memory:
            fits = _fits(counter, need.phase, device)
            options = (option.text for option in _options(config, need.phase) if fits(option.config))
            required = device.required(need.peak_bytes)
            return Misfit(need.phase, required, device.memory, device.name, tuple(islice(options, MOST_NAMED)))
    return None


def _least_needs(
    counter: NeedsCounter, config: ExperimentConfig, device: Device, phase: str | None = None
) -> list[PhaseNeed]:
    phases = None if phase is None else (phase,)
    return counter.needs(in_smallest_batches(config), memory=device.capacity, gpu=device.gpu, phases=phases)


def _fits(counter: NeedsCounter, phase: str, device: Device) -> Callable[[ExperimentConfig], bool]:
    def fits(config: ExperimentConfig) -> bool:
        phase_needs = _least_needs(counter, config, device, phase)
        return all(device.required(need.peak_bytes) <= device.memory for need in phase_needs)

    return fits


def _options(config: ExperimentConfig, phase: str) -> Iterator[Option]:
    """What might make a phase fit: what changes no number first, what leaves something out last."""
    curvature = config.curvature
    if phase == "training" and not config.training.gradient_checkpointing:
        again = replace(config.training, gradient_checkpointing=True)
        yield Option("training.gradient_checkpointing=true", replace(config, training=again))
    if phase in ("landscape", "plane") and config.landscape.points_per_forward != 1:
        one = replace(config.landscape, points_per_forward=1)
        yield Option("landscape.points_per_forward=1", replace(config, landscape=one))
    if config.model.dtype in ("auto", "float32"):
        yield Option("model.dtype=bfloat16", replace(config, model=replace(config.model, dtype="bfloat16")))
    if phase == "forecast":
        yield Option("curvature.forecast=false", replace(config, curvature=replace(curvature, forecast=False)))
    if phase == "weight spectrum":
        none = replace(curvature, weight_probes=0)
        yield Option("curvature.weight_probes=0", replace(config, curvature=none))
    if phase == "spectrum":
        yield Option("curvature.spectrum=false", replace(config, curvature=replace(curvature, spectrum=False)))


def require_fit(config: ExperimentConfig, notify: Callable[[str], None], device: Device | None = None) -> None:
    """UserError where a phase of the run cannot fit into the memory of its device, by default of this machine's.

    The memory of a CPU is all that the machine has: others share it, and give it back.
    """
    if not config.low_rank:  # not counted
        return
    device = own_device(config.model.device) if device is None else device
    model = model_settings(config.model)
    if model is None or (read_settings(config.model) is None and not hub_answers()):  # it will not be loaded either
        return
    if not device.gpu and _surely_fits(NeedsCounter(model.settings, longest_lengths(config.data)), config, device):
        return
    counter = NeedsCounter(model.settings, item_lengths(config, notify))
    if not device.gpu and _surely_fits(counter, config, device):
        return
    problem = misfit(counter, config, device)
    if problem is not None:
        raise UserError(str(problem))


def _surely_fits(counter: NeedsCounter, config: ExperimentConfig, device: Device) -> bool:
    return counter.surely_fits(in_smallest_batches(config), device.capacity, gpu=device.gpu)


def worker_bytes(configs: Iterable[ExperimentConfig], device: Device) -> float:
    """Memory of `device` that the largest of several runs takes at least, with prompts as long as they may be.

    0 where no model's size is known.
    """
    largest, counters = 0.0, dict[tuple[object, ...], NeedsCounter]()
    for config in {_memory_key(config): config for config in configs if config.low_rank}.values():
        key = config.model, config.data.max_tokens
        if key not in counters:
            model = model_settings(config.model)
            if model is None:
                continue
            counters[key] = NeedsCounter(model.settings, longest_lengths(config.data))
        for need in _least_needs(counters[key], config, device):
            largest = max(largest, device.required(need.peak_bytes))
    return largest


def host_bytes(configs: Iterable[ExperimentConfig]) -> float:
    """Memory of the host that a worker on a GPU takes at most: while it loads, a file of weights and the program."""
    known = [model_settings(model) for model in {config.model for config in configs}]
    weights = [2.0 * parameters(each.settings) for each in known if each is not None]
    return GPU_REST + min(max(weights, default=0.0), SHARD)


def _memory_key(config: ExperimentConfig) -> tuple[object, ...]:
    """What memory depends on: configurations of a study differ in little of it."""
    return (
        (config.model, config.lora, config.training.gradient_checkpointing, methods_key(config)),
        (len(config.data.tasks), config.data.max_tokens),
        (replace(config.landscape, seed=0), replace(config.curvature, seed=0)),
    )
