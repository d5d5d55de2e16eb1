"""Learning without forgetting (Li & Hoiem 2016): KL divergence to the model before the task, without old data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from llm_forgetting.config.rules import above, at_least
from llm_forgetting.models.language.batches import EncodedItem, collate
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.seeding import derive_seed, generator
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.training.method import Cost, Method, Start


@dataclass(frozen=True)
class KlOptions:
    """Options of the KL penalty.

    Args:
        strength: Its weight beside the loss; both are in nats.
        direction: `forward`, KL(before || now), which covers all that was likely, or `reverse`, KL(now || before).
        source: Where it is measured: at the predictions of the new task's `inputs`, at every token of control `text`, or of
            texts that the model before the task has `generated`.
        batch: Texts per optimiser batch, of `text` and `generated`.
        texts: How many are generated.
        tokens: How long they are.
        first: Whether the first task is held to the base model, too.
    """

    strength: float = above(0, default=1.0)
    direction: Literal["forward", "reverse"] = "forward"
    source: Literal["inputs", "text", "generated"] = "inputs"
    batch: int = at_least(1, default=2)
    texts: int = at_least(1, default=16)
    tokens: int = at_least(2, default=32, most=4096)
    first: bool = False


class Kl(Method[KlOptions]):
    """The mean KL divergence between the model before the task and the live one is added to the loss.

    The model before is the live one with its trained weights exchanged for a copy of the earlier ones: no second backbone.
    """

    Options = KlOptions
    _before: Mapping[str, torch.Tensor] = {}
    _texts: Sequence[EncodedItem] = ()

    def acts(self, number: int) -> bool:
        """From the second task on, unless the first is asked for."""
        return number > 1 or self.options.first

    def cost(self, modules: Sequence[tuple[int, int]], earlier: int) -> Cost:
        """A pass of the live model with its graph and one of the earlier model without, of as many tokens as the batch."""
        return Cost(passes=1 + 4 / 3, graphs=1, adapter_copies=1)

    def begin(self, start: Start) -> None:
        """Copy the trained weights, and find or write the texts."""
        named = start.model.peft_model.named_parameters(remove_duplicate=False)
        self._before = {name: p.detach().clone() for name, p in named if p.requires_grad}
        if self.options.source == "text":
            self._texts = tuple(start.text())
        elif self.options.source == "generated":
            self._texts = generated(start.model, self.options.texts, self.options.tokens, start.seed)

    def penalty(self, model: LanguageModel, items: Sequence[EncodedItem]) -> torch.Tensor:
        """strength KL on the batch's own items, or on texts that the batch chooses: a resumed run chooses the same."""
        if self._texts:
            ids = (item.item.id for item in items)
            rows = generator(0, "kl", *ids).permutation(len(self._texts))[: self.options.batch]
            items = [self._texts[row] for row in sorted(rows)]
        batch = collate(items, model.pad_id)
        with self._earlier(model), torch.no_grad():
            before = model.answer_logits(batch)
        return self.options.strength * divergence(before, model.answer_logits(batch), self.options.direction)

    @contextmanager
    def _earlier(self, model: LanguageModel) -> Iterator[None]:
        """Within the block the model is that before the task, in evaluation mode; the live parameters are not written."""
        network = model.peft_model
        training, live = network.training, {}
        try:
            network.eval()
            for name, value in self._before.items():
                owner, _, leaf = name.rpartition(".")
                parameters = network.get_submodule(owner)._parameters
                live[name] = parameters, leaf, parameters[leaf]
                parameters[leaf] = value
            yield
        finally:
            for parameters, leaf, parameter in live.values():
                parameters[leaf] = parameter
            network.train(training)


def divergence(before: torch.Tensor, now: torch.Tensor, direction: str) -> torch.Tensor:
    """Mean over rows of KL(before || now), or reversed, of softmax distributions, from logits (n, vocabulary); nats."""
    earlier, live = before.log_softmax(dim=-1), now.log_softmax(dim=-1)
    p, q = (earlier, live) if direction == "forward" else (live, earlier)
    return (p.exp() * (p - q)).sum(dim=-1).mean()


def generated(model: LanguageModel, count: int, tokens: int, seed: int) -> tuple[EncodedItem, ...]:
    """`count` texts of `tokens` tokens that the model writes after its own first token, sampled from its distribution."""
    first = model.tokenizer.bos_token_id
    begin = model.tokenizer.eos_token_id if first is None else first
    ids = torch.full((count, 1), int(begin or 0), device=model.device)
    model.peft_model.eval()
    draw = torch.Generator().manual_seed(derive_seed(seed, "kl", "texts"))
    with torch.no_grad(), model.computing():
        for _ in range(tokens - 1):
            logits = model.peft_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].float()
            following = torch.multinomial(logits.softmax(dim=-1).cpu(), 1, generator=draw)
            ids = torch.cat([ids, following.to(ids)], dim=1)
    return tuple(
        EncodedItem(
            Completion(f"generated/{n}", "text", "", "a text that the model wrote"), tuple(row[:-1]), (),
            places=tuple(range(tokens - 1)), targets=tuple(row[1:]),
        )
        for n, row in enumerate(ids.tolist())
    )  # fmt: skip


METHOD = Kl
