"""Prompts with completions against plain transformers: tokens, losses, gradients, products, surfaces."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCABULARY, load

from llm_forgetting.models.hessian.products import products_at
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.objective import LandscapeObjective
from llm_forgetting.models.language.scoring import score
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.task import Item

pytestmark = pytest.mark.usefixtures("one_thread")


def completion(n: int, prompt: list[int], learnt: list[int], more: tuple[int, ...] = ()) -> EncodedItem:
    """Prompt, learnt tokens, and perhaps a second turn: three tokens that are not learnt and `more` that are."""
    tokens = [*prompt, *learnt, *([7, 8, 9, *more] if more else [])]
    first = len(prompt)
    places = [*range(first, first + len(learnt)), *range(len(tokens) - len(more), len(tokens))]
    item = Completion(f"s/test/{n}", "s", "?", "!")
    targets = tuple(tokens[place] for place in places)
    return EncodedItem(item, tuple(tokens[: places[-1]]), (), places=tuple(p - 1 for p in places), targets=targets)


def some_items() -> list[EncodedItem]:
    """Completions that share a prompt and part of the answer, a conversation, a text, and questions with letters between."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, VOCABULARY, size=9).tolist()
    question = Item("q/test/0", "q", "?", ("p", "q", "r"), 1)
    return [
        completion(0, prompt, [20, 21, 22]),
        EncodedItem(question, tuple(rng.integers(3, VOCABULARY, size=6).tolist()), (40, 41, 42)),
        completion(1, prompt, [20, 21, 30, 31]),
        completion(2, prompt[:4], [11], more=(12, 13)),
        completion(3, prompt[:1], rng.integers(3, VOCABULARY, size=8).tolist()),
        completion(4, prompt, [20]),
    ]


def plain_losses(model: LanguageModel, item: EncodedItem) -> torch.Tensor:
    """By labels, as transformers has them, without padding."""
    ids = torch.tensor([[*item.input_ids, item.answer_tokens[-1]]])
    labels = torch.full_like(ids, -100)
    for place, token in zip(item.predictions, item.answer_tokens, strict=True):
        labels[0, place + 1] = token
    logits = model.peft_model(input_ids=ids).logits[0, :-1].double()
    losses = F.cross_entropy(logits, labels[0, 1:], reduction="none")
    return losses[labels[0, 1:] >= 0]


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LanguageModel:
    return load(llama_folder)


def test_losses_are_those_of_labels_packed_and_padded(model: LanguageModel) -> None:
    items = some_items()
    expected = torch.cat([plain_losses(model, item) for item in items])
    assert model.supports_packing
    for packed in (True, False):
        found = answer_losses(model, items, packed=packed)
        assert torch.allclose(found.double(), expected, atol=1e-5)
        scored = score(model, items, 3, packed=packed)
        assert scored.token_losses == pytest.approx(expected.detach().numpy(), abs=1e-5)


def test_gradients_are_those_of_labels(model: LanguageModel) -> None:
    items = some_items()
    parameters = [p for p in model.peft_model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(torch.cat([plain_losses(model, item) for item in items]).mean(), parameters)
    for packed in (True, False):
        found = torch.autograd.grad(answer_losses(model, items, packed=packed).mean(), parameters)
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-6 + 1e-4 * float(b.abs().max()))


def test_an_items_loss_is_its_mean_and_a_tasks_that_of_its_tokens(model: LanguageModel) -> None:
    items = some_items()
    scored = score(model, items, None)
    each = [plain_losses(model, item).detach().numpy() for item in items]
    assert scored.losses == pytest.approx([losses.mean() for losses in each], abs=1e-5)
    assert scored.surface("loss") == pytest.approx(np.concatenate(each).mean(), abs=1e-5)
    assert scored.of(slice(2, 4)).surface("loss") == pytest.approx(np.concatenate(each[2:4]).mean(), abs=1e-5)


def test_right_is_a_completion_that_greedy_decoding_writes(model: LanguageModel) -> None:
    (item, *_) = some_items()
    prompt, wanted = list(item.input_ids[: item.places[0] + 1]), len(item.targets)
    ids = torch.tensor([prompt])
    written = model.peft_model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=wanted, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    greedy = completion(9, prompt, written)
    assert score(model, [greedy, item], None).correct.tolist() == [True, written == list(item.targets)]
    other = completion(10, prompt, [*written[:-1], (written[-1] + 1) % VOCABULARY])
    assert score(model, [other, greedy], None).correct.tolist() == [False, True]


def test_products_are_those_of_a_double_backward(model: LanguageModel) -> None:
    items = [item for item in some_items() if item.places]
    factors = model.adapter_factors()
    step = type(factors).combine([(0.3, factors)])
    found = {}
    for method in ("tangent", "graph"):
        with products_at(model, items, factors, micro_batch=2, method=method) as products:
            derivatives = products.along_update(step)
        found[method] = (derivatives.loss, derivatives.slope, derivatives.curvature)
    assert found["tangent"] == pytest.approx(found["graph"], rel=1e-4, abs=1e-6)
    every = torch.cat([plain_losses(model, item) for item in items])
    assert found["graph"][0] == pytest.approx(float(every.detach().mean()), abs=1e-5)


def test_values_of_the_objective_give_the_losses_of_each_task(model: LanguageModel) -> None:
    items = some_items()
    tasks = [("one", items[:2]), ("two", items[2:])]
    objective = LandscapeObjective(model, tasks, 16)
    with objective.evaluating() as values_at:
        (values,) = values_at([model.adapter_factors()])
    expected = [torch.cat([plain_losses(model, item) for item in group]).mean().item() for _, group in tasks]
    assert objective.losses(values).tolist() == pytest.approx(expected, abs=1e-5)
    for n in (0, 1):
        assert objective.loss(n, values[objective.columns(n)]) == pytest.approx(expected[n], abs=1e-5)
