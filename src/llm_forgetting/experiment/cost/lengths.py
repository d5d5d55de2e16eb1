"""The items of a run as far as their lengths go: tokens where the tokenizer is on this machine, else what characters make."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from llm_forgetting.config.sections import DataConfig, ExperimentConfig
from llm_forgetting.errors import UnreachableError
from llm_forgetting.experiment.tasks import harness_probes, probes_of, source_of, tasks_of
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.settings import local_tokenizer
from llm_forgetting.tasks.prompts import render
from llm_forgetting.tasks.task import AnyItem, Item, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Measured with SmolLM2's tokenizer: 3.2 (abstract algebra's formulas) to 4.7 (law).
CHARACTERS_PER_TOKEN = 4.0
# More items than these are not tokenized for an estimate.
MOST_TOKENIZED = 1_000
_SPLITS = ("train", "test")
_LETTERS = (5, 6, 7, 8)


@dataclass(frozen=True)
class ItemLengths:
    """The items of tasks, and of probes that we score ourselves, as tokens whose number is right; `notes` say what had to be
    assumed.
    """

    tasks: tuple[EncodedTask, ...]
    notes: tuple[str, ...] = ()
    probes: tuple[EncodedTask, ...] = ()

    @property
    def items(self) -> list[EncodedItem]:
        """All items of all tasks and probes."""
        return [item for task in (*self.tasks, *self.probes) for split in _SPLITS for item in task.split(split)]


def item_lengths(config: ExperimentConfig, notify: Callable[[str], None]) -> ItemLengths:
    """Lengths of the configured tasks' items; as long as `data.max_tokens` allows where the data cannot be reached."""
    data = config.data
    try:
        source = source_of(data, notify)
        tasks = tasks_of(data, source)
        probes = probes_of(data, source, tasks, notify)
    except UnreachableError as error:  # whatever else is wrong, a misspelt task for one, is an error and no assumption
        note = f"sizes assumed, items as long as data.max_tokens allows: {error}"
        return ItemLengths(tuple(_assumed(name, data) for name in data.tasks), (note,))
    tokenizer = local_tokenizer(config.model)
    harness = harness_probes(data)
    notes = [f"not counted: {', '.join(harness)} of lm-evaluation-harness"] if harness else []
    if tokenizer is None:
        notes.append(
            f"no tokenizer of {config.model.name} is on this machine: {CHARACTERS_PER_TOKEN:g} characters count as a token"
        )

    def sized(task: Task) -> EncodedTask:
        if tokenizer is None:
            return _by_characters(task, data.max_tokens, CHARACTERS_PER_TOKEN)
        return _tokenized(task, tokenizer, data.max_tokens)

    return ItemLengths(tuple(map(sized, tasks)), tuple(notes), tuple(map(sized, probes)))


def longest_lengths(data: DataConfig) -> ItemLengths:
    """Items as long as `data.max_tokens` allows, without a look at the data."""
    return ItemLengths(tuple(_assumed(name, data) for name in data.tasks))


def _assumed(name: str, data: DataConfig) -> EncodedTask:
    train = data.train_items or round((data.items_per_task or 200) * data.train_fraction)
    test = data.test_items or (data.items_per_task or 200) - train
    items = [Item(f"{name}/{n}", name, "", ("",) * len(_LETTERS), 0) for n in range(train + test)]
    made = tuple(_of_length(items, [data.max_tokens] * len(items), shared=0))
    return EncodedTask(name, made[:train], made[train:])


def _tokenized(task: Task, tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> EncodedTask:
    items = [*task.train, *task.test]
    if len(items) <= MOST_TOKENIZED:
        return EncodedTask(
            task.name, *(tuple(encode(tokenizer, task.split(split), task.shots, max_tokens)) for split in _SPLITS)
        )
    sample = [_text(item, task.shots.get(item.subject, ())) for item in items[:: len(items) // 100]]
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in sample)
    return _by_characters(task, max_tokens, sum(map(len, sample)) / tokens)


def _by_characters(task: Task, max_tokens: int, each: float) -> EncodedTask:
    """A token per `each` characters; what the prompts of a subject have in common are the same tokens."""
    made: dict[str, EncodedItem] = {}
    for subject in task.subjects:
        items = [item for split in _SPLITS for item in task.split(split) if item.subject == subject]
        texts = [_text(item, task.shots.get(subject, ())) for item in items]
        lengths = [min(max_tokens, 1 + round(len(text) / each)) for text in texts]
        shared = min(round(_common(texts) / each), *lengths) if len(texts) > 1 else 0
        made |= {item.item.id: item for item in _of_length(items, lengths, shared)}
    return EncodedTask(task.name, *(tuple(made[item.id] for item in task.split(split)) for split in _SPLITS))


def _text(item: AnyItem, shots: Sequence[AnyItem]) -> str:
    """All that is said of an item, about."""
    if isinstance(item, Item):
        return render(item, [shot for shot in shots if isinstance(shot, Item)])
    return "".join([*(f"{shot.question}{shot.answer}" for shot in shots), item.question, item.answer])


def _common(texts: Sequence[str]) -> int:
    """Characters that all texts begin with."""
    first, last = min(texts), max(texts)
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def _of_length(items: Sequence[AnyItem], lengths: Iterable[int], shared: int) -> list[EncodedItem]:
    """Items of made-up tokens of which the first `shared` are the same and the next differ; of completions a quarter is
    learnt.
    """
    numbers = count(shared)
    made = []
    for item, length in zip(items, lengths, strict=True):
        tokens = (*range(shared), *([next(numbers)] * (length - shared)))
        if isinstance(item, Item):
            made.append(EncodedItem(item, tokens, _LETTERS[: len(item.choices)]))
        else:
            learnt = max(1, min(length - shared, length // 4))
            places = tuple(range(length - learnt, length))
            made.append(EncodedItem(item, tokens, (), places=places, targets=(0,) * learnt))
    return made
