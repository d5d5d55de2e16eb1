"""The two backbones that need no hub: whole or absent, and what they know."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, save, tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.models.language import backbones
from llm_forgetting.models.language.backbones import synthetic_backbone
from llm_forgetting.models.language.batches import collate
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.tasks import hub
from llm_forgetting.tasks.prompts import render
from llm_forgetting.tasks.sources import open_source
from llm_forgetting.tasks.synthetic import SUBJECTS, SyntheticSource

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def silent(message: str) -> None:
    """Hears what a build has to say."""


def left_behind(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def synthetic_items(shots: int) -> tuple[list[Any], dict[str, tuple[Any, ...]]]:
    """Every row of the four tasks, and `shots` examples of each."""
    pools = [SyntheticSource().pool(name, (name,)) for name in SUBJECTS]
    return [row for pool in pools for row in pool.rows], {pool.name: pool.rows[:shots] for pool in pools}


def test_synthetic_backbone_loads_like_any_other(cache: Path) -> None:
    told: list[str] = []
    folder = synthetic_backbone(told.append)
    assert folder.parent == cache
    assert len(told) == 1
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.vocab_size == len(tokenizer) == len(tokenizer.get_vocab())
    assert synthetic_backbone(told.append) == folder
    assert len(told) == 1
    assert left_behind(cache) == {folder.name}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_synthetic_tokenizer_knows_every_word_of_every_prompt(cache: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(synthetic_backbone(silent))
    items, shots = synthetic_items(2)
    encoded = encode(tokenizer, items[::40], shots, 512)
    encoded += encode(tokenizer, items[::7], {}, 512)
    letters = {item.letter_ids for item in encoded}
    assert len(letters) == 1
    assert tokenizer.convert_ids_to_tokens(list(letters.pop())) == [" A", " B", " C", " D"]
    for item in encoded:
        assert tokenizer.unk_token_id not in item.input_ids
        assert not item.shots_dropped
        assert len(item.input_ids) < 512
    texts = [render(item) for item in items]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])


def test_synthetic_weights_are_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded by name, whatever the global generator has done, and leaving it alone."""
    weights = []
    for n in range(2):
        monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / str(n)))
        torch.manual_seed(n)
        folder = synthetic_backbone(silent)
        after = torch.rand(2)
        torch.manual_seed(n)
        assert torch.equal(after, torch.rand(2))
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing_behind(
    error: type[BaseException], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: Path, notify: Any) -> None:
        (folder / "config.json").write_text("half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(backbones, "_make_random_llama", interrupted)
        with pytest.raises(error):
            synthetic_backbone(silent)
    assert left_behind(cache) == set()
    assert (synthetic_backbone(silent) / "model.safetensors").is_file()


BUILD = """
import sys, time
from pathlib import Path
from llm_forgetting.models.language import backbones

def build(folder, notify):
    notify("building")
    (folder / "one").write_text("1")
    time.sleep(0.5)
    (folder / "two").write_text("2")

backbones._make_random_llama = build
log = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
folder = backbones.synthetic_backbone(lambda message: log.open("a").write(message + "\\n"))
assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]
"""


@pytest.mark.process
def test_two_processes_at_once_build_once(cache: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(tmp_path / "log")],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    assert (tmp_path / "log").read_text() == "building\n"
    assert len(left_behind(cache)) == 1


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cache folder must be writable .* Set LLM_FORGETTING_CACHE") as error:
        synthetic_backbone(silent)
    assert "\n" not in str(error.value)


def test_a_cache_folder_that_may_not_be_looked_into(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", forbidden)
    with pytest.raises(UserError, match=r"cache folder must be writable .* Permission denied"):
        synthetic_backbone(silent)


def test_a_full_disk_is_told_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, notify: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backbones, "_make_random_llama", full)
    with pytest.raises(UserError, match=r"must be writable and have room; .*No space left on device"):
        synthetic_backbone(silent)
    assert left_behind(cache) == set()


@pytest.mark.process  # an empty cache is filled by pip
def test_embedded_model_gives_the_reference_log_probabilities() -> None:
    """lm-evaluation-harness 0.4.13 on the same model: the first anatomy test item, 0-shot, and the model's own voice.

    The cache is the user's own (or LLM_FORGETTING_CACHE), so that model and data are downloaded once, not per run.
    """
    model = LanguageModel.load(ModelConfig(name="embedded", dtype="float32"), LoraConfig(), seed=0)
    source = open_source(source="embedded", path=None, hub_config=None, columns={}, notify=silent)
    rows = source.pool("anatomy", ("anatomy",)).rows
    item = next(row for row in rows if row.id == "anatomy/test/0")
    (encoded,) = encode(model.tokenizer, [item], {}, 512)
    with torch.no_grad():
        (logits,) = model.answer_logits(collate([encoded], model.pad_id))
        text = model.tokenizer("The capital of France is", return_tensors="pt")
        output = model.peft_model.generate(**text, max_new_tokens=1, do_sample=False)
    assert item.answer == 0
    found = logits.log_softmax(dim=0)[list(encoded.letter_ids)].tolist()
    assert found == pytest.approx([-2.3419, -6.9606, -4.8995, -4.3281], abs=1e-3)
    assert model.tokenizer.decode(output[0]).endswith("The capital of France is Paris")


# What is loaded is all there


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def rewritten(folder: Path, weights: dict[str, torch.Tensor], **settings: Any) -> None:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


LOST = "model.layers.1.self_attn.q_proj.weight"


def lack_one(folder: Path) -> None:
    rewritten(folder, {name: tensor for name, tensor in weights_of(folder).items() if name != LOST})


def lack_a_head(folder: Path) -> None:
    rewritten(folder, {name: tensor for name, tensor in weights_of(folder).items() if name != "lm_head.weight"})


def lack_all(folder: Path) -> None:
    rewritten(folder, {"something": torch.ones(2)})


def hold_more(folder: Path) -> None:
    rewritten(folder, {**weights_of(folder), "model.layers.1.extra.weight": torch.ones(2)})


def fewer_layers(folder: Path) -> None:
    rewritten(folder, weights_of(folder), num_hidden_layers=1)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lack_one, f"must hold all its weights, missing: {LOST};"),
        (lack_a_head, "must hold all its weights, missing: lm_head.weight;"),
        (lack_all, "must hold all its weights, missing: .* and 20 more;"),
        (hold_more, "no other weights than its own, unexpected: model.layers.1.extra.weight;"),
        (fewer_layers, "no other weights than its own, unexpected: model.layers.1.* and 8 more"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_model_that_lacks_weights_is_refused(
    damage: Callable[[Path], None], match: str, llama_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    damage(folder)
    with pytest.raises(UserError, match=match) as error:
        backbones.load_backbone(ModelConfig(name=str(folder)), silent)
    assert "\n" not in str(error.value)


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_llama(tie_word_embeddings=True))
    assert "lm_head.weight" not in weights_of(folder)
    backbones.load_backbone(ModelConfig(name=str(folder)), silent)


# Attention


@pytest.mark.parametrize("kind", ["bloom", "gptj", "gemma2"])
def test_a_model_without_sdpa_attention_takes_eager_attention_and_says_so(kind: str, tmp_path: Path) -> None:
    sizes: dict[str, dict[str, int]] = {
        "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
        "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
        "gemma2": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                   "num_key_value_heads": 1, "head_dim": 8},
    }  # fmt: skip
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **sizes[kind])
    folder = save(tmp_path / "model", AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    said: list[str] = []
    model, _ = backbones.load_backbone(ModelConfig(name=str(folder)), said.append)
    assert model.config._attn_implementation in ("eager", "sdpa")
    assert said == [f"{folder} has no sdpa attention; model.attention: eager is used"] * (
        model.config._attn_implementation == "eager"
    )


def test_a_skeleton_has_the_modules_and_no_weights(llama_folder: Path, tmp_path: Path) -> None:
    backbone = backbones.skeleton(ModelConfig(name=str(llama_folder)))
    assert backbone is not None
    assert {name for name, _ in backbone.named_modules()} == {name for name, _ in tiny_llama().named_modules()}
    assert all(weight.is_meta for weight in backbone.parameters())
    assert backbones.skeleton(ModelConfig(name=str(tmp_path))) is None


def test_a_hub_that_is_silent_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class SilentSession:
        def head(self, address: str, **options: object) -> None:
            asked.append(address)
            raise ConnectionError("no route to host")

    hub._answers.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", SilentSession)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"model\.name='nobody/nothing' could not be loaded: the Hugging Face hub cannot"
        ):
            backbones.load_backbone(ModelConfig(name="nobody/nothing"), silent)
    hub._answers.cache_clear()
    assert len(asked) == 1
