"""What the landscape benchmark measures on: an adapted model and fixed items, given by options or made once."""

import dataclasses
import hashlib
import json
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from llm_forgetting.config.sections import ExperimentConfig, LoraConfig, ModelConfig
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.files import whole_folder
from llm_forgetting.landscape.gauge import canonicalise
from llm_forgetting.landscape.spaces import AdapterSpace
from llm_forgetting.models.language.backbones import backbone_location
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.tasks.sources import open_source
from llm_forgetting.tasks.task import Item
from llm_forgetting.training.fine_tuning import fine_tune

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
SHARED = HERE.parents[1] / "shared"
MODEL = ModelConfig(name="embedded", dtype="float32", device="cpu")
Notify = Callable[[str], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scan:
    """What `ours` gives back: a loss surface over [-distance, distance]^2, in units of |P|.

    `losses` maps points (q, 2) to losses (q,), nats. `points` (p, 2) are all places where the model was evaluated, check
    points included; there are as many `evaluations`, unless others were made that are no points of the plane.
    """

    losses: Callable[[Floats], Floats]
    points: Floats
    evaluations: int


@dataclass(frozen=True)
class Case:
    """The model at the checkpoint, its items (all of one task), its PEFT folder, and where it comes from."""

    model: LanguageModel
    items: Sequence[EncodedItem]
    adapter: Path
    origin: str

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(item.input_ids) for item in self.items)

    @property
    def items_sha256(self) -> str:
        """Hash of the items' ids, in order."""
        return hashlib.sha256("\n".join(item.item.id for item in self.items).encode()).hexdigest()

    @property
    def sgemm_shape(self) -> tuple[int, int, int]:
        """All tokens through one of the backbone's feed-forward matrices."""
        config = self.model.peft_model.get_base_model().config
        return self.tokens, int(config.hidden_size), int(config.intermediate_size)

    def write(self, folder: Path, *, seed: int, batch_size: int) -> None:
        """case.json and plane.safetensors for the workers: canonical factors and the first two directions of stream `seed`."""
        space = AdapterSpace(canonicalise(self.model.adapter_factors()))
        d, e = space.directions(seed, 2, space.norm)
        parts = {"base": space.point([]), "d": d, "e": e}
        tensors = {
            f"{part}|{name}|{factor}": tensor.contiguous()
            for part, factors in parts.items()
            for name, pair in factors.items()
            for factor, tensor in vars(pair).items()
        }
        save_file(tensors, folder / "plane.safetensors")
        content = {
            "backbone": backbone_location(MODEL.name, lambda message: None),
            "adapter": str(self.adapter),
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            "pad_id": self.model.pad_id,
            "items": [{"prompt": item.input_ids, "answer": item.letter_ids[item.item.answer]} for item in self.items],
        }
        (folder / "case.json").write_text(json.dumps(content))


def add_options(parser: ArgumentParser) -> None:
    """--adapter, --items and --mmlu."""
    parser.add_argument(
        "--adapter",
        type=Path,
        help="PEFT folder of a LoRA adapter of the embedded backbone; default: ../shared/oracles/adapters/after_task1 if it is "
        "there, else one is trained and kept",
    )
    parser.add_argument("--items", type=Path, help="JSON: task -> split -> list of [file, row]; its first task is used")
    parser.add_argument("--mmlu", type=Path, help="MMLU's original folder (dev/, val/, test/), where those rows are")


def load_case(options: Namespace, notify: Notify) -> Case:
    """The case that the options name, else the shared reference run's, else one that is trained here."""
    given = (options.adapter, options.items, options.mmlu)
    if all(given):
        return read_case(*given, origin="given by --adapter, --items and --mmlu", notify=notify)
    if any(given):
        raise SystemExit("--adapter, --items and --mmlu must be given together: the items are those of the adapter")
    oracles = SHARED / "oracles"
    shared = (oracles / "adapters/after_task1", oracles / "items.json", SHARED / "data/mmlu")
    if all(path.exists() for path in shared):
        return read_case(*shared, origin="reference run: ../shared/oracles/adapters/after_task1", notify=notify)
    return train_case(notify)


def read_case(adapter: Path, items: Path, mmlu: Path, *, origin: str, notify: Notify) -> Case:
    """A given adapter and given rows of MMLU's files."""
    model = load_adapter(adapter, notify)
    return Case(model, encoded(model, read_items(items, mmlu)), adapter.resolve(), origin)


def load_adapter(adapter: Path, notify: Notify) -> LanguageModel:
    """A given adapter on the embedded backbone, whatever backbone it names."""
    saved = json.loads((adapter / "adapter_config.json").read_text())
    targets = saved["target_modules"]
    lora = LoraConfig(
        rank=saved["r"],
        alpha=saved["lora_alpha"],
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        use_rslora=saved.get("use_rslora", False),
    )
    model = LanguageModel.load(MODEL, lora, seed=0, notify=notify)
    model.load_adapter_weights(adapter)
    return model


def read_items(path: Path, mmlu: Path) -> list[Item]:
    """All items of the first task of `path`, in its order."""
    task, splits = next(iter(json.loads(path.read_text()).items()))
    pool = open_source(source="local", path=str(mmlu)).pool(task, (task,))
    by_id = {item.id: item for item in pool.rows}
    return [by_id[f"{task}/{file}/{row}"] for rows in splits.values() for file, row in rows]


def encoded(model: LanguageModel, items: Sequence[Item]) -> list[EncodedItem]:
    """The items as tokens, without worked examples."""
    return encode(model.tokenizer, items, {}, ExperimentConfig().data.max_tokens)


def train_case(notify: Notify) -> Case:
    """The default run's first task, out of the embedded sample, and the adapter after it; trained once and kept."""
    config = ExperimentConfig(model=MODEL)
    task = tasks_of(config.data, source_of(config.data, notify))[0]
    model = LanguageModel.load(MODEL, config.lora, seed=config.training.seed, notify=notify)
    settings = json.dumps([dataclasses.asdict(part) for part in (config.lora, config.training, config.data)])
    adapter = CACHE / f"after_task1-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    if not adapter.is_dir():
        notify(
            f"no ../shared and no --adapter: training on {len(task.train)} items of {task.name}, once (a few minutes)"
        )
        with whole_folder(adapter) as folder, tempfile.TemporaryDirectory() as resume_files:
            fine_tune(model, encoded(model, task.train), config.training, stream="task1", scratch=Path(resume_files))
            model.save(folder)
    model.load_adapter_weights(adapter)
    return Case(
        model, encoded(model, (*task.train, *task.test)), adapter, f"trained here on {task.name} (embedded sample)"
    )
