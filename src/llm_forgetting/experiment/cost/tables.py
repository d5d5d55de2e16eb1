"""Tables of what a run costs before it is started: its phases, their memory, and the devices that they fit into."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.experiment.cost.devices import (
    CARDS,
    CONTEXT,
    CPU_EFFICIENCY,
    EFFICIENCY,
    FRAGMENTATION,
    REST,
    Device,
    card,
    own_device,
    this_cpu,
)
from llm_forgetting.experiment.cost.fit import Misfit, misfit
from llm_forgetting.experiment.cost.lengths import ItemLengths, item_lengths
from llm_forgetting.experiment.cost.needs import NeedsCounter, PhaseNeed
from llm_forgetting.experiment.cost.work import Work, probe_sizes, probe_work, task_sizes, work_of
from llm_forgetting.models.language.settings import ModelSettings, model_settings, without_weights
from llm_forgetting.progress import duration
from llm_forgetting.report.tables.run import Table

_ARITHMETIC_NOTE = (
    f"Times: operations over {100 * EFFICIENCY['bfloat16']:.0f}% of a GPU's matrix rate in bfloat16 and TF32, "
    f"{100 * EFFICIENCY['float32']:.0f}% in float32, {100 * CPU_EFFICIENCY:.0f}% of this CPU's, measured now. "
    "Launches of operators are not counted: a small model takes longer on a GPU."
)


@dataclass(frozen=True)
class DeviceEstimate:
    """What the phases need of one device, and the first of them that cannot be made on it."""

    device: Device
    needs: tuple[PhaseNeed, ...]
    misfit: Misfit | None

    def seconds(self, work: Sequence[Work]) -> float | None:
        """Time of `work`; None where the device's rates are not known."""
        per_token = {need.phase: need.flops / need.tokens for need in self.needs}
        rates = {need.phase: self.device.rate(need.arithmetic) for need in self.needs}
        parts = [(per_token[kind] * count, rates[kind]) for each in work for kind, count in each.tokens.items()]
        return sum(flops / (rate or 1.0) for flops, rate in parts) if all(rate for _, rate in parts) else None

    def flops(self, work: Work) -> float:
        """Floating-point operations of `work`."""
        per_token = {need.phase: need.flops / need.tokens for need in self.needs}
        return sum(per_token[kind] * count for kind, count in work.tokens.items())


def estimate(config: ExperimentConfig, notify: Callable[[str], None], gpu: str | None = None) -> list[Table]:
    """The phases with sizes and time on one device, memory by phase, and which devices the run fits into.

    The device is the class of GPUs called `gpu`, else this machine's own. UserError where there is no such class.
    """
    device = own_device(config.model.device) if gpu is None else card(gpu)
    lengths, model = item_lengths(config, notify), model_settings(config.model)
    work = [*work_of(config, task_sizes(lengths), probe_sizes(lengths)), *probe_work(lengths)]
    if model is None or not config.low_rank:
        why = "model's size is not known here" if model is None else "trained update is more than plain LoRA"
        note = f"The {why}, so neither time nor memory can be estimated."
        if model is not None and config.lora is None:
            weights = sum(weight.numel() for weight in without_weights(model.settings, torch.float32).parameters())
            note += (
                f" All {weights:,} weights are trained: they, their gradients and AdamW's two moments alone take "
                f"{16 * weights / 1e9:.2g} GB in float32."
            )
        rows = tuple((each.label, f"{each.passes:,.0f}") for each in work)
        return [_tasks(lengths), Table("Phases", ("phase", "item passes"), rows, note)]
    counter = NeedsCounter(model.settings, lengths)
    own = _estimated(counter, config, device)
    others = [_estimated(counter, config, each) for each in (*CARDS.values(), this_cpu()) if each.name != device.name]
    return [
        _tasks(lengths),
        _phases(config, work, own),
        _memory([own, *others], model),
        _devices([own, *others], work),
    ]


def _estimated(counter: NeedsCounter, config: ExperimentConfig, device: Device) -> DeviceEstimate:
    phase_needs = counter.needs(config, memory=device.capacity, gpu=device.gpu)
    fits = all(device.required(need.peak_bytes) <= device.memory for need in phase_needs)
    return DeviceEstimate(device, tuple(phase_needs), None if fits else misfit(counter, config, device))


def seconds_of(config: ExperimentConfig, notify: Callable[[str], None]) -> float | None:
    """Seconds of a whole run on this machine; None where the model's size is not known, what the device computes, or what
    an update that is more than plain LoRA takes.
    """
    model = model_settings(config.model)
    if model is None or not config.low_rank:
        return None
    lengths, device = item_lengths(config, notify), own_device(config.model.device)
    counted = NeedsCounter(model.settings, lengths).needs(config, memory=device.capacity, gpu=device.gpu)
    work = [*work_of(config, task_sizes(lengths), probe_sizes(lengths)), *probe_work(lengths)]
    return DeviceEstimate(device, tuple(counted), None).seconds(work)


def _tasks(lengths: ItemLengths) -> Table:
    rows = tuple((t.name, str(t.train), str(t.test), f"{t.tokens:.0f}") for t in task_sizes(lengths))
    return Table("Tasks", ("task", "train", "test", "tokens per item, about"), rows, " ".join(lengths.notes))


def _phases(config: ExperimentConfig, work: Sequence[Work], own: DeviceEstimate) -> Table:
    def row(label: str, passes: str, parts: Sequence[Work]) -> tuple[str, ...]:
        return label, passes, _time(own.seconds(parts), gpu=own.device.gpu), _operations(sum(map(own.flops, parts)))

    note = (
        f"Times on {own.device.name}. Fits take as many points as they need, at most {config.landscape.max_evaluations} each; "
        "counted are the fewest."
    )
    rows = (*(row(each.label, f"{each.passes:,.0f}", [each]) for each in work), row("all", "", work))
    return Table("Phases", ("phase", "item passes", "time", "operations"), rows, note)


def _memory(estimates: Sequence[DeviceEstimate], model: ModelSettings) -> Table:
    """Memory by phase, a column for every memory size."""
    columns = {each.device.memory if each.device.gpu else each.device.name: each for each in estimates[::-1]}
    ordered = [each for each in estimates if each in columns.values()]
    names = [f"{e.device.memory / 1e9:.0f} GB" if e.device.gpu else e.device.name for e in ordered]
    rows = tuple((need.phase, *(_gigabytes(e, e.needs[n]) for e in ordered)) for n, need in enumerate(ordered[0].needs))
    settings = model.settings
    note = (
        f"GB of the device, at micro-batches as the run chooses them for its memory; (no): more than it has. GPU: "
        f"{1 + FRAGMENTATION:g} times what is alive at once, and {CONTEXT / 1e9:g} GB for the CUDA context; CPU: "
        f"{REST / 1e9:g} GB for Python and PyTorch (the system's allocator can hold 40% more). Counted on the program's own "
        f"code, without weights. The model's shape: "
        f"{getattr(settings, 'num_hidden_layers', '?')} layers of {getattr(settings, 'hidden_size', '?')}, {model.origin}."
    )
    return Table("Memory", ("phase", *names), rows, note)


def _gigabytes(estimate: DeviceEstimate, need: PhaseNeed) -> str:
    required = estimate.device.required(need.peak_bytes)
    return f"{required / 1e9:.1f}{'' if required <= estimate.device.memory else ' (no)'}"


def _devices(estimates: Sequence[DeviceEstimate], work: Sequence[Work]) -> Table:
    rows = tuple(
        (
            each.device.name,
            f"{each.device.memory / 1e9:.0f} GB",
            _verdict(each),
            _time(each.seconds(work), gpu=each.device.gpu),
        )
        for each in estimates
    )
    problems = [f"{each.misfit}." for each in estimates if each.misfit is not None]
    return Table("Devices", ("device", "memory", "fits", "time"), rows, " ".join([*problems, _ARITHMETIC_NOTE]))


def _verdict(estimate: DeviceEstimate) -> str:
    if estimate.misfit is not None:
        return f"no: {estimate.misfit.phase}"
    device = estimate.device
    whole = all(device.required(need.peak_bytes) <= device.memory for need in estimate.needs)
    return "yes" if whole else "yes, in smaller batches"


def _time(seconds: float | None, *, gpu: bool = False) -> str:
    """Of a GPU nothing below a minute, because what is not counted decides there."""
    if seconds is None:
        return "?"
    return "under 1 min" if gpu and seconds < 60 else duration(seconds, rough=True)


def _operations(flops: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= size:
            return f"{flops / size:,.{1 if flops < 100 * size else 0}f} {unit}"
    return f"{flops / 1e9:.1f} GFLOP"
