"""Sanity checks before training: what would otherwise spoil every number in silence."""

from collections.abc import Callable, Sequence

import numpy as np

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.trackers import require_trackers
from llm_forgetting.experiment.tasks import harness_folder, harness_probes
from llm_forgetting.models.adapter.adapted_model import attach_lora
from llm_forgetting.models.language.backbones import require_folder, skeleton
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.harness import require_tasks
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.quantisation import require_package
from llm_forgetting.models.language.scoring import score
from llm_forgetting.results import GuardReport
from llm_forgetting.training.arguments import require_known_names

GUARD_ITEMS = 16
PASSES = 4
LETTER_MASS_WARNING = 0.5


def check_names(config: ExperimentConfig) -> None:
    """UserError where a configuration names what training or trackers do not know, before anything is loaded."""
    require_known_names(config.training)
    require_trackers(config.output.trackers)
    require_tasks(harness_probes(config.data), harness_folder(config.data))
    if config.evaluation.quantised:
        require_package("bitsandbytes", f"evaluation.quantised=[{', '.join(config.evaluation.quantised)}]")


def check_modules(config: ExperimentConfig) -> None:
    """UserError where the adapter does not fit the backbone, as far as that is known without its weights."""
    require_folder(config.model.name)
    backbone = skeleton(config.model)
    if backbone is not None and config.lora is not None:
        attach_lora(backbone, config.lora, seed=0)


def check(
    model: LanguageModel, encoded: Sequence[EncodedItem], advance: Callable[[int], None] = lambda items: None
) -> GuardReport:
    """Run the checks on up to 16 items of mixed length; UserError where the model cannot be measured.

    `advance` gets the number of items whenever some were scored, `PASSES` times all of them.
    """
    by_length = sorted(encoded, key=lambda item: len(item.input_ids))
    picks = np.linspace(0, len(by_length) - 1, min(GUARD_ITEMS, len(by_length))).round().astype(int)
    # Long and short items side by side, so that the batch really is padded.
    chosen = [by_length[i] for i in np.unique(picks)]
    alone = score(model, chosen, 1, advance, packed=False)
    padded = score(model, chosen, len(chosen), advance, packed=False)  # as training sees them, also where scoring packs
    together, again = (score(model, chosen, len(chosen), advance) for _ in range(2))
    if not all(np.isfinite(way.losses).all() for way in (alone, padded, together)):
        raise UserError(
            f"the base model's losses must be finite, some are not in {model.dtype}; use model.dtype=float32"
        )
    there = np.isfinite(alone.letter_logits)
    difference = max(
        float(np.abs(alone.letter_logits[there] - way.letter_logits[there]).max()) for way in (padded, together)
    )
    tolerance = model.rounding
    if difference > tolerance:
        raise UserError(
            f"an item's answer must not depend on its batch; letter logits alone and in a batch differ by {difference:.3g} "
            f"(allowed {tolerance:g}): this model's padding or positions are not handled, use another model"
        )
    repeat = float(abs(together.losses.mean() - again.losses.mean()))
    if not repeat <= 1e-6 * max(1.0, float(together.losses.mean())):
        raise UserError(
            f"two passes over the same items must give the same loss, they differ by {repeat:.3g} nats: the model is not "
            f"deterministic in eval mode (dropout? atomics?), so no landscape of it can be measured"
        )
    return GuardReport(
        items=len(chosen),
        batch_size=len(chosen),
        batch_logit_difference=difference,
        batch_tolerance=tolerance,
        repeat_loss_difference=repeat,
        letter_mass=float(together.letter_mass.mean()),
        letter_token_ids=chosen[0].letter_ids,
    )
