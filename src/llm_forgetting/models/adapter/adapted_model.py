"""A model of any architecture with one LoRA adapter: how delta W is read, moved and saved."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from llm_forgetting.config.measurements import Arithmetic
from llm_forgetting.errors import UserError
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.models.adapter import perturbation
from llm_forgetting.models.adapter.attach import attach_lora, is_plain_lora, refuse_uncovered, target_layers
from llm_forgetting.models.adapter.dense_updates import (
    DenseUpdates,
    PeftUpdates,
    dense_row_norms,
    dense_update_of,
    save_whole,
)
from llm_forgetting.models.adapter.initial_part import initial_parts, require_initial_parts
from llm_forgetting.models.adapter.lora_updates import LoraUpdates, reads_factors, sort_names
from llm_forgetting.models.adapter.places import exchanging
from llm_forgetting.models.adapter.saved_adapter import CONFIG, Checkpoint
from llm_forgetting.models.adapter.widened import is_widened, keep_layout, widened

__all__ = ["AdaptedModel", "attach_lora", "is_adapted", "target_layers"]


def is_adapted(model: Any) -> bool:
    """Whether `model` is a PEFT model; UserError where it only contains adapters, in A and B of which nothing is comparable."""
    if isinstance(model, peft.PeftModel):
        return True
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(
            f"a model with adapters must be a PEFT model (peft.get_peft_model), {type(model).__name__} only contains some; "
            f"pass the PEFT model itself, or give directions=(d, e) over named parameters"
        )
    return False


class AdaptedModel:
    """A PEFT model with an adapter, or a model all of whose weights are trained.

    `peft_model` is the live model; `adapter_factors` reads its update, of plain LoRA in scale-free form delta W = B A (the
    scale s is absorbed), and `perturbed` runs a block at another point and restores every bit afterwards. `dense` does that
    where the adapter is not plain LoRA; None: it is.
    """

    def __init__(self, peft_model: Any, dense: DenseUpdates | None = None) -> None:
        self.peft_model = peft_model
        self.adapter: str = "default"
        self.dense = dense
        if dense is None:
            refuse_uncovered(peft_model)
            keep_layout(peft_model)
            self.adapter = peft_model.active_adapters[0]
            self.dense = None if is_plain_lora(peft_model) else PeftUpdates(peft_model)
        self.arithmetic: Arithmetic = "float32"
        self._initial_parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def lora(self) -> LoraUpdates:
        """A and B of a plain LoRA adapter."""
        return LoraUpdates(self.peft_model)

    @property
    def _trained(self) -> LoraUpdates | DenseUpdates:
        return self.lora if self.dense is None else self.dense

    def keep_initial_parts(self) -> None:
        """Hold the live adapter, and whatever is loaded into it, to what its initialisation took out of the weights."""
        self._initial_parts = initial_parts(target_layers(self.peft_model), self.adapter)

    def require_initial_parts(self, what: str) -> None:
        """UserError where the live adapter does not have them any more."""
        if self._initial_parts:
            require_initial_parts(target_layers(self.peft_model), self._initial_parts, what, self.adapter)

    @property
    def backbone(self) -> Any:
        """The model of transformers, adapted or not."""
        return self.peft_model.get_base_model() if isinstance(self.peft_model, peft.PeftModel) else self.peft_model

    @property
    def low_rank(self) -> bool:
        """Whether all updates of this model are s B A: its own, and those of the checkpoints that were read for it."""
        return self.dense is None

    def require_low_rank(self, what: str) -> None:
        """UserError where `what` needs factors that the model's update has not."""
        if not self.low_rank:
            raise UserError(
                f"{what} needs a plain LoRA adapter (delta W = s B A), this model's update is more than that"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the backbone's weights."""
        if self.dense is not None:
            return next(place.parameter.dtype for places in self.dense.places.values() for place in places)
        return self.lora.dtype

    @property
    def precision(self) -> torch.dtype:
        """Precision in which analyses compute: float32 or better, the backbone's own where `arithmetic` is native."""
        return self.dtype if self.arithmetic == "native" else torch.promote_types(self.dtype, torch.float32)

    @contextmanager
    def analysed(self) -> Iterator[None]:
        """Within the block the backbone computes in `precision`."""
        if self.arithmetic == "native":
            yield
            return
        with self.matrix_products(), widened(self.backbone):
            yield

    @contextmanager
    def matrix_products(self) -> Iterator[None]:
        """Within the block a GPU's float32 products have factors of 24 bits, of 11 where `arithmetic` is tf32."""
        matmul = torch.backends.cuda.matmul
        before, matmul.allow_tf32 = matmul.allow_tf32, self.arithmetic == "tf32"
        try:
            yield
        finally:
            matmul.allow_tf32 = before

    def adapter_factors(self) -> WeightUpdate:
        """delta W = B A of every target module, in float32 or better on the model's device; copies. Dense changes where it is
        not plain LoRA.
        """
        return self._trained.update()

    @property
    def is_trained(self) -> bool:
        """Whether delta W is not 0 (that of a fresh adapter is); True where it is not plain LoRA."""
        return self.dense is not None or any(
            bool(pair.B.any() and pair.A.any()) for pair in self.lora.update().values()
        )

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """All that is trained, A and B by the names that PEFT gives them in a saved adapter; copies on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self._trained.tensors()}

    def set_adapter_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give the adapter the weights that `adapter_state` had."""
        self._trained.set_state(state)

    def update_of(self, checkpoint: Checkpoint) -> WeightUpdate:
        """delta W of a checkpoint on this backbone, on the model's device.

        A folder of a saved adapter (its own kind, rank and scale), a PEFT state dict (the live adapter's scale), an update, or
        None: the bare backbone, delta W = 0. UserError where it does not fit. After one that is not plain LoRA the model itself
        counts as such.
        """
        if self.dense is None and not _has_factors(checkpoint):
            self.dense = PeftUpdates(self.peft_model)
        return self.lora.update_of(checkpoint) if self.dense is None else dense_update_of(self.dense, checkpoint)

    def weight_row_norms(self, update: WeightUpdate | None = None) -> dict[str, torch.Tensor]:
        """(d_out,) row norms of the merged weight W + delta W of every target module, of the live update or another.

        Where the update is not plain LoRA, of every changed parameter of two and more dimensions.
        """
        update = self.adapter_factors() if update is None else update
        return self.lora.row_norms(update) if self.dense is None else dense_row_norms(self.dense, update)

    @property
    def can_merge(self) -> bool:
        """Whether W + B A can be written into the backbone: float32 or float64 (not quantised), so that B A is not rounded
        away, and no adapted W that another module uses too (a head tied to the embedding), which would move as well.
        """
        layers = [layer.get_base_layer() for layer in target_layers(self.peft_model).values()]
        if self.dense is not None or any(map(is_widened, layers)):
            return False
        weights = [layer.weight for layer in layers]
        adapted = {id(weight) for weight in weights}
        places = [id(p) for _, p in self.peft_model.named_parameters(remove_duplicate=False) if id(p) in adapted]
        return len(places) == len(weights) and all(w.dtype in (torch.float32, torch.float64) for w in weights)

    @contextmanager
    def perturbed(self) -> Iterator[Callable[[WeightUpdate], None]]:
        """A setter that moves the model to any delta W = B A (of any rank); on leaving, every bit is as before.

        A float32 backbone gets W + B A merged into the adapted modules, computed from a snapshot of W: the forward then is
        the bare model's. Where merging is not possible (`can_merge`), it is applied beside a backbone that is never written.
        Either way nothing drifts, also when the block raises or is interrupted.
        Costs one copy of the adapted weights (merged) or one float32 weight at a time (beside narrow weights, see `widened`).
        An update that is not plain LoRA is put in the place of the parameters that it changes, which are never written.
        """
        if self.dense is not None:
            with self.without_adapter(), self.analysed(), self.exchanged() as move:
                yield move
            return
        if not self.can_merge:
            with self.unmerged() as move_all:
                yield lambda point: move_all([point])
            return
        with self.without_adapter(), self.analysed(), perturbation.merged(target_layers(self.peft_model)) as move:
            yield move

    def exchanged(self) -> AbstractContextManager[Callable[[WeightUpdate], None]]:
        """A setter that puts W + delta W into the places of the parameters that an update changes; see `places.exchanging`."""
        assert self.dense is not None
        return exchanging(self.dense.places, self.dense.origin, self.dense.others, self.precision)

    @contextmanager
    def unmerged(self) -> Iterator[Callable[[Sequence[WeightUpdate]], None]]:
        """A setter that applies one low-rank update per row of the batch beside the frozen weights, which are never written.

        With several points the batch must have as many rows; they then share one forward of the backbone.
        """
        with self.without_adapter(), self.analysed(), perturbation.unmerged(target_layers(self.peft_model)) as move:
            yield move

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The backbone without its adapter; what is trained is as before afterwards (PEFT trains all that it enables)."""
        if not isinstance(self.peft_model, peft.PeftModel):
            yield
            return
        trained = [(parameter, parameter.requires_grad) for parameter in self.peft_model.parameters()]
        try:
            self.peft_model.base_model.disable_adapter_layers()
            yield
        finally:
            self.peft_model.base_model.enable_adapter_layers()
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within the block the model is that from which updates are counted, trained biases and all."""
        if self.dense is None:
            with self.without_adapter():
                yield
            return
        with self.perturbed() as move:
            move(WeightUpdate({}))
            yield

    def adapter_sha256(self) -> str:
        """Hash over names and bytes of all adapter weights: equal exactly if the adapters are bit-equal."""
        digest = hashlib.sha256()
        for name, weight in self.lora.hashed() if self.dense is None else sorted(self.dense.tensors()):
            plain = weight.detach().cpu().contiguous().view(-1)
            digest.update(name.encode() + plain.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """The adapter into an existing folder (safetensors, loadable by `PeftModel.from_pretrained`)."""
        self.require_initial_parts("the adapter, as training left it,")
        self.peft_model.save_pretrained(folder, safe_serialization=True)
        if (folder / CONFIG).is_file():
            sort_names(folder)

    def save_update(self, folder: Path, update: WeightUpdate) -> None:
        """Any delta W of this backbone, of whatever ranks, as an adapter like those of `save`; its scale s is 1.

        One that is not plain LoRA is written as a whole model.
        """
        if self.dense is None:
            self.lora.save(folder, update)
        else:
            save_whole(self.backbone, self.dense, folder, update)

    def load_adapter_weights(self, folder: Path) -> None:
        """Replace the adapter's weights by those saved in `folder`; B is multiplied where its scale is not the live one."""
        self._trained.load(folder)
        if self.dense is None:
            self.require_initial_parts(f"the adapter in {folder}")


def _has_factors(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's update is factors alone."""
    if isinstance(checkpoint, str | os.PathLike):
        return reads_factors(Path(checkpoint))
    return not (isinstance(checkpoint, WeightUpdate) and checkpoint.dense)
