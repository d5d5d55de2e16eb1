"""Models all of whose weights are trained: an update is the difference of two checkpoints, read one parameter at a time."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llm_forgetting.errors import UserError
from llm_forgetting.landscape.dense import Dense
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import at_least_float32
from llm_forgetting.models.adapter.places import Place, places_of
from llm_forgetting.models.adapter.saved_adapter import CONFIG, WEIGHTS, read_config

Values = Callable[[str], torch.Tensor]


class Difference:
    """after - before of one parameter, upright, both of which are read when it is."""

    def __init__(self, place: Place, after: Callable[[], torch.Tensor], before: Callable[[], torch.Tensor]) -> None:
        self._place = place
        self._after = after
        self._before = before

    @property
    def shape(self) -> torch.Size:
        """Of the parameter, upright."""
        return self._place.upright(self._place.parameter).shape

    @torch.no_grad()
    def read(self) -> torch.Tensor:
        """The difference, where the model is."""
        device = self._place.parameter.device
        after, before = (at_least_float32(read().to(device)) for read in (self._after, self._before))
        return self._place.upright(after - before)


class FullUpdates:
    """`DenseUpdates` of a model of transformers all of whose parameters are trained.

    Updates are counted from the weights that it has now: those of the folder `base`, read from there, or a copy of them.
    """

    def __init__(self, model: Any, base: Path | None) -> None:
        if any(not parameter.is_floating_point() for parameter in model.parameters()):
            raise UserError("a model whose own weights move must not be quantised; load it without quantisation")
        self._model = model
        places: dict[int, dict[str, Place]] = {}
        for name, place in places_of(model).items():
            places.setdefault(id(place.parameter), {})[name] = place
        # Tied parameters are one, by the first of their names.
        self._names = {next(iter(tied)): list(tied) for tied in places.values()}
        self.places: Mapping[str, list[Place]] = {next(iter(t)): list(t.values()) for t in places.values()}
        self.others = list(self.places)
        self.trained = sum(where[0].parameter.numel() for where in self.places.values())
        self._base = self._values_of(base) if base is not None and self._fits(base) else self._copies()
        self._live: tuple[Values, int] | None = self._base, self._version

    @property
    def _version(self) -> int:
        """Another number after every change of a parameter."""
        return sum(where[0].parameter._version for where in self.places.values())

    def _fits(self, folder: Path) -> bool:
        """Whether a folder's files hold every parameter under one of its names."""
        files = _files(folder)
        return all(any(name in files for name in names) for names in self._names.values())

    def _copies(self) -> Values:
        held = {name: where[0].parameter.detach().cpu().clone() for name, where in self.places.items()}
        return held.__getitem__

    def _values_of(self, folder: Path) -> Values:
        """From parameters to their values in a model's folder; UserError where it is of another model."""
        if not is_full_model(folder):
            raise UserError(f"a folder with a whole model is needed (config.json, no adapter), {folder} is not one")
        if not self._fits(folder):
            return self._loaded(folder)
        files = _files(folder)
        found = {p: next(name for name in names if name in files) for p, names in self._names.items()}
        for parameter, name in found.items():
            with safe_open(files[name], "pt") as file:
                self._require_shape(folder, parameter, tuple(file.get_slice(name).get_shape()))

        def read(parameter: str) -> torch.Tensor:
            with safe_open(files[found[parameter]], "pt") as file:
                value: torch.Tensor = file.get_tensor(found[parameter])
                return value

        return read

    def _loaded(self, folder: Path) -> Values:
        """The same of a folder whose files have other names than the parameters: by transformers, all at once."""
        from transformers import AutoModelForCausalLM

        kind: Any = AutoModelForCausalLM
        try:
            model = kind.from_pretrained(folder, dtype=self._model.dtype, local_files_only=True, use_safetensors=True)
        except Exception as error:  # what transformers says of files that it cannot take is of any type
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} must be the folder of a whole model (safetensors): {reason}") from error
        held = {name: place.parameter.detach() for name, place in places_of(model).items()}
        for parameter in self.places:
            self._require_shape(folder, parameter, tuple(held[parameter].shape) if parameter in held else None)
        return held.__getitem__

    def _require_shape(self, folder: Path, parameter: str, shape: tuple[int, ...] | None) -> None:
        own = tuple(self.places[parameter][0].parameter.shape)
        if shape != own:
            raise UserError(
                f"the model in {folder} must have the architecture of this one, its {parameter} is {shape}, must be {own}"
            )

    def origin(self, parameter: str) -> torch.Tensor:
        """The value from which updates are counted."""
        place = self.places[parameter][0]
        return place.upright(self._base(parameter).to(place.parameter.device))

    def update(self) -> WeightUpdate:
        """The live weights minus those at the beginning; read from files where they were loaded from there."""
        if self._live is None or self._live[1] != self._version:
            self._live = self._copies(), self._version
        return self._difference(self._live[0])

    def _difference(self, values: Values) -> WeightUpdate:
        if values is self._base:
            return WeightUpdate({})

        def of(name: str) -> Dense:
            return Difference(self.places[name][0], lambda: values(name), lambda: self._base(name))

        return WeightUpdate({}, {name: of(name) for name in self.places})

    def read(self, folder: Path) -> WeightUpdate:
        """The weights in a folder minus those at the beginning."""
        return self._difference(self._values_of(folder))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters."""
        for name, where in self.places.items():
            yield name, where[0].parameter.detach()

    def set_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the model these weights; what is not named gets its value at the beginning."""
        self._set(lambda name: state[name] if name in state else self._base(name))
        self._live = (self._base, self._version) if not state else None

    def load(self, folder: Path) -> None:
        """Give the model the weights in a folder."""
        values = self._values_of(folder)
        self._set(values)
        self._live = values, self._version

    @torch.no_grad()
    def _set(self, values: Values) -> None:
        for name, where in self.places.items():
            where[0].parameter.copy_(values(name))


def is_full_model(folder: Path) -> bool:
    """Whether a folder holds a whole model, not an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def require_checkpoint(folder: Path) -> None:
    """UserError where a folder holds neither an adapter nor a whole model."""
    if not is_full_model(folder):
        read_config(folder)


def checkpoint_files(folder: Path) -> list[str]:
    """The files that say what a checkpoint is: settings and weights of an adapter, or of a whole model."""
    if not is_full_model(folder):
        return [CONFIG, WEIGHTS]
    return ["config.json", *(path.name for path in sorted(folder.glob("*.safetensors")))]


def _files(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a folder's safetensors, by name; UserError where one is damaged."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"the model in {folder} must be whole, {path.name} is not: {error}") from error
    return found
