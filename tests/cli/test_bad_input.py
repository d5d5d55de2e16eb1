"""Whatever a command is given: one line on stderr that says what must hold, exit status 2, within seconds."""

import json
import os
import pickle
import random
import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import yaml
from bad_inputs import (
    ADAPTERS,
    CONFIGS,
    DATA,
    DEFINITIONS,
    FIELDS,
    GOOD,
    MMLU_FILES,
    MODEL_FILES,
    MODELS,
    OPTIONS,
    RUNS,
    STUDIES,
    WORDS,
)
from runs import THOROUGH
from safetensors.torch import save_file
from tiny_models import llama2_tokenizer, save
from transformers import BertConfig, BertLMHeadModel

from llm_forgetting.cli.main import main
from llm_forgetting.models.language.backbones import synthetic_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
Case = TypeVar("Case")
Complain = Callable[..., str]
SECONDS = 30
"""More than any takes on a loaded machine; what hangs takes for ever."""


def some(cases: Sequence[Case], count: int) -> list[Case]:
    """All cases in CI, else `count` of them, always the same."""
    return list(cases) if THOROUGH else random.Random(0).sample(list(cases), min(count, len(cases)))


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """The file with that content."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the synthetic backbone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_FORGETTING_CACHE", str(folder))
        synthetic_backbone(lambda message: None)
    return folder


@pytest.fixture
def complain(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Complain:
    """Runs a command in an empty folder and gives its complaint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def complaint(*words: object) -> str:
        start = time.perf_counter()
        status = main([str(word) for word in words])
        assert time.perf_counter() - start < SECONDS
        out, err = capsys.readouterr()
        assert status == 2, out + err
        assert re.fullmatch("error: [^\n]+\n", err), err
        assert err.removesuffix("\n").isprintable()
        assert len(err) < 1300
        assert "Traceback" not in out + err
        return err.removeprefix("error: ").removesuffix("\n")

    return complaint


def named(value: object) -> str:
    """A short id of a case."""
    return re.sub(r"[^\w.=-]+", "_", repr(value))[:50]


@pytest.mark.parametrize(("line", "said"), OPTIONS, ids=named)
def test_options(line: str, said: str, complain: Complain) -> None:
    assert said in complain(*shlex.split(line))


@pytest.mark.parametrize(("words", "said"), WORDS, ids=named)
def test_words_that_no_shell_gives(words: list[str], said: str, complain: Complain) -> None:
    assert said in complain(*words)


@pytest.mark.parametrize(("words", "said"), some(FIELDS, 60), ids=named)
def test_numbers(words: list[str], said: str, complain: Complain) -> None:
    assert said in complain("run", *words)


@pytest.mark.parametrize(("content", "said"), CONFIGS, ids=named)
def test_configurations(content: str | bytes, said: str, tmp_path: Path, complain: Complain) -> None:
    assert said in complain("run", "--config", written(tmp_path, "own.yaml", content), "--dry_run")


@pytest.mark.parametrize(("content", "said"), DEFINITIONS, ids=named)
def test_definitions(content: str | bytes, said: str, tmp_path: Path, complain: Complain) -> None:
    for name in ("good.jsonl", "good.txt"):
        written(tmp_path, name, GOOD)
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert said in complain("tasks", "--definitions", written(tmp_path, "own.yaml", content))


@pytest.mark.parametrize(("name", "content", "said"), DATA, ids=named)
def test_data(name: str, content: str | bytes, said: str, tmp_path: Path, complain: Complain) -> None:
    written(tmp_path, name, content)
    columns = ", columns: {choices: [a, b]}" if name.endswith(("csv", "tsv")) else ""
    definitions = written(tmp_path, "own.yaml", f"own: {{path: {name}{columns}}}")
    assert said in complain("tasks", "--definitions", definitions)


@pytest.mark.parametrize(("name", "content", "said"), MMLU_FILES, ids=named)
def test_mmlu_folders(name: str, content: str | bytes, said: str, tmp_path: Path, complain: Complain) -> None:
    written(tmp_path / "mmlu", name, content)
    assert said in complain("tasks", "--source", "local", "--path", tmp_path / "mmlu")


def test_pipes_and_folders_in_place_of_files(tmp_path: Path, complain: Complain) -> None:
    for name in ("pipe.yaml", "mmlu/test/anatomy_test.csv", "records.json.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "mmlu2/test/anatomy_test.csv").mkdir(parents=True)
    assert "--config must be a preset" in complain("run", "--config", "pipe.yaml")
    assert "pipe or device" in complain("run", "--data.definitions", "pipe.yaml", "--dry_run")
    assert "pipe or device" in complain("study", "pipe.yaml")
    assert "pipe or device" in complain("study", "--records", "records.json.gz")
    for folder in ("mmlu", "mmlu2"):
        assert "must be a regular file" in complain("tasks", "--source", "local", "--path", folder)


@pytest.mark.parametrize(("content", "said"), STUDIES, ids=named)
def test_studies(content: str | bytes, said: str, tmp_path: Path, complain: Complain) -> None:
    assert said in complain("study", written(tmp_path, "study.yaml", content), "--dry_run")


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters(case: str, tmp_path: Path, complain: Complain) -> None:
    damage, said = ADAPTERS[case]
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "x/y",
    }
    content = json.dumps({**settings, **damage}) if isinstance(damage, dict) else damage
    written(tmp_path, "adapter/adapter_config.json", content)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file({f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(16, 2)},
              tmp_path / "adapter/adapter_model.safetensors")  # fmt: skip
    if case in ("task type unknown", "targets none"):  # PEFT's to tell
        return
    found = complain("landscape", "adapter", "--task", "synthetic_1", "--data.source", "synthetic")
    assert re.search(said, found)
    assert not (tmp_path / "outputs").exists()


def evaluate(model: Path) -> list[object]:
    data = ["--task", "synthetic_1", "--data.source", "synthetic", "--limit", 2]
    return ["evaluate", *data, "--model_name", model, "--output_dir", model.parent / "outputs"]


@pytest.fixture
def model(llama_folder: Path, tmp_path: Path) -> Path:
    """A tiny Llama's folder, to be damaged."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


@pytest.mark.process  # asks uname
def test_a_model_folder_that_is_whole_is_no_bad_input(model: Path) -> None:
    assert main([str(word) for word in evaluate(model)]) == 0


@pytest.mark.parametrize(("changes", "said"), some(MODELS, 12), ids=named)
def test_model_configurations(changes: dict[str, object], said: str, model: Path, complain: Complain) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert said in complain(*evaluate(model))
    assert not any((model.parent / "outputs").iterdir())


@pytest.mark.parametrize(("name", "content", "said"), some(MODEL_FILES, 8), ids=named)
def test_model_files(name: str, content: bytes | None, said: str, model: Path, complain: Complain) -> None:
    if content is None:
        (model / name).unlink()
    else:
        written(model, name, content)
    assert said in complain(*evaluate(model))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("canary",)


def test_a_pickled_model_runs_no_code(model: Path, tmp_path: Path, complain: Complain) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))
    assert "could not be loaded" in complain(*evaluate(model))
    assert not (tmp_path / "canary").exists()


def test_the_tokenizer_of_a_larger_model(model: Path, complain: Complain) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"].update({f"word{n}": size + n for n in range(3)})
    path.write_text(json.dumps(content))
    assert f"must come with its own tokenizer; this one has {size + 3} tokens" in complain(*evaluate(model))


def test_a_model_that_looks_ahead(tmp_path: Path, complain: Complain) -> None:
    words = len(llama2_tokenizer().get_vocab())
    bert = BertLMHeadModel(BertConfig(vocab_size=words, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                      intermediate_size=16))  # fmt: skip
    assert "must be a causal language model" in complain(*evaluate(save(tmp_path / "model", bert)))


@pytest.mark.parametrize(("line", "name", "content"), RUNS, ids=named)
def test_run_folders(line: str, name: str, content: bytes, tmp_path: Path, complain: Complain) -> None:
    written(tmp_path, "RUN/config.yaml", "")
    written(tmp_path, f"RUN/{name}", content)
    assert name in complain(*shlex.split(line))


@pytest.mark.parametrize(("content", "said"), some(CONFIGS, 15), ids=named)
def test_configurations_of_run_folders(content: str | bytes, said: str, tmp_path: Path, complain: Complain) -> None:
    written(tmp_path, "RUN/config.yaml", content)
    assert said in complain("run", "--resume", "RUN")
    assert said in complain("repair", "RUN")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", b"a", None])
def test_control_texts(content: bytes | None, tmp_path: Path, complain: Complain) -> None:
    text = tmp_path / "text"
    os.mkfifo(text) if content is None else text.write_bytes(content)
    from runs import TINY

    own = written(tmp_path, "own.yaml", yaml.safe_dump(TINY))
    assert f"evaluation.text={text} must" in complain("run", "--config", own, "--evaluation.text", text)
