"""Frozen layers or modules: from the second task on part of the adapter is not trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.adapter.places import layer_number
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.training.method import Method, Start


@dataclass(frozen=True)
class FreezeOptions:
    """Options of freezing; what either names is frozen.

    Args:
        layers: Numbers of layers, from 0.
        modules: Names of modules such as q_proj, mlp, or model.layers.3.
    """

    layers: tuple[int, ...] = ()
    modules: tuple[str, ...] = ()


class Freeze(Method[FreezeOptions]):
    """Weights of the named layers and modules stay as the task before left them."""

    Options = FreezeOptions
    title = ""
    _frozen: Mapping[str, int] = {}

    def problems(self, config: ExperimentConfig) -> Iterator[str]:
        """Nothing is frozen where nothing is named."""
        if not self.options.layers and not self.options.modules:
            yield "must name what is frozen: layers, or modules"

    def require(self, model: AdaptedModel) -> None:
        """UserError where nothing, or all, is named by the options."""
        self._chosen(model)

    def begin(self, start: Start) -> None:
        """Freeze."""
        frozen = self._chosen(start.model)
        self._frozen = {name: parameter.numel() for name, parameter in frozen.items()}
        for parameter in frozen.values():
            parameter.requires_grad_(False)

    def _chosen(self, model: AdaptedModel) -> dict[str, torch.nn.Parameter]:
        trained = {
            name: parameter for name, parameter in model.peft_model.named_parameters() if parameter.requires_grad
        }
        frozen = {name: parameter for name, parameter in trained.items() if self.names(name)}
        if not 0 < len(frozen) < len(trained):
            raise UserError(
                f"training.methods.freeze must name some of the trained weights, layers={list(self.options.layers)} and "
                f"modules={list(self.options.modules)} name {'all' if frozen else 'none'} of {len(trained)}, such as "
                f"{next(iter(trained))}"
            )
        return frozen

    def names(self, parameter: str) -> bool:
        """Whether a parameter is in a named layer or module."""
        dotted = f".{parameter}."
        return layer_number(parameter) in self.options.layers or any(f".{m}." in dotted for m in self.options.modules)

    @property
    def moves(self) -> bool:
        """False: layers are only set free again."""
        return False

    def end(self, model: LanguageModel) -> None:
        """Let all weights be trained again."""
        for name, parameter in model.peft_model.named_parameters():  # another method may have exchanged them
            if name in self._frozen:
                parameter.requires_grad_(True)

    def measured(self, model: AdaptedModel) -> dict[str, float]:
        """How many weights were frozen."""
        return {"weights": float(sum(self._frozen.values()))}


METHOD = Freeze
