"""What a run needs: LLaMA-2 7B within its bars, a model of few layers as good as all of them, options that make a run fit."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import llama2_tokenizer, save, tiny_llama
from transformers import LlamaConfig

from llm_forgetting.cli.run import parse_run
from llm_forgetting.config.measurements import CurvatureConfig, LandscapeConfig
from llm_forgetting.config.sections import DataConfig, ExperimentConfig, LoraConfig, ModelConfig, TrainingConfig
from llm_forgetting.errors import UnreachableError, UserError
from llm_forgetting.experiment import workers
from llm_forgetting.experiment.cost import fit, needs, tables
from llm_forgetting.experiment.cost.devices import CARDS, CONTEXT, Device, card, matrix_rate, this_cpu
from llm_forgetting.experiment.cost.fit import host_bytes, misfit, require_fit, worker_bytes
from llm_forgetting.experiment.cost.lengths import ItemLengths, item_lengths, longest_lengths
from llm_forgetting.experiment.cost.needs import PIECES, NeedsCounter, PhaseNeed
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.settings import local_tokenizer, model_settings, parameters, read_settings
from llm_forgetting.tasks.task import Item

GB = 1e9
# Tokens of 64 items each of MMLU's computer science and philosophy, with LLaMA's tokenizer, longest first.
COMPUTER_SCIENCE = (
    292, 292, 283, 261, 255, 255, 225, 212, 212, 211, 204, 200, 200, 198, 178, 178, 177, 176, 168, 168, 164, 160, 160, 154,
    140, 140, 138, 135, 129, 128, 124, 121, 118, 117, 117, 112, 111, 108, 105, 105, 104, 103, 99, 98, 97, 97, 95, 91, 91, 85,
    78, 78, 71, 69, 69, 68, 68, 67, 66, 62, 61, 60, 58, 53,
)  # fmt: skip
PHILOSOPHY = (
    173, 139, 139, 124, 124, 124, 119, 115, 115, 110, 109, 109, 104, 104, 96, 96, 91, 91, 90, 87, 87, 87, 85, 85, 84, 83, 80,
    80, 80, 76, 74, 74, 74, 74, 73, 73, 73, 71, 69, 68, 68, 68, 68, 67, 67, 67, 66, 66, 66, 64, 64, 63, 63, 61, 61, 61, 61,
    61, 60, 60, 60, 60, 54, 53,
)  # fmt: skip


def llama_7b() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip


def task(name: str, lengths: Sequence[int], shared: int = 20) -> EncodedTask:
    items = tuple(
        EncodedItem(
            Item(f"{name}/{n}", name, "", ("a", "b", "c", "d"), 0),
            (*range(shared), *[shared + n] * (length - shared)),
            (319, 350, 315, 360),
        )
        for n, length in enumerate(lengths)
    )
    return EncodedTask(name, items, items)


def lengths_of(*tasks: Sequence[int]) -> ItemLengths:
    return ItemLengths(tuple(task(f"task {n}", lengths) for n, lengths in enumerate(tasks)))


def preset(*options: str) -> ExperimentConfig:
    return parse_run(["--config", "llama2-7b", *options])[1]


def gpu(gigabytes: float) -> Device:
    return Device("a small GPU", int(gigabytes * GB), True, lambda arithmetic: 1e12)


def by_phase(found: Sequence[PhaseNeed]) -> dict[str, PhaseNeed]:
    return {need.phase: need for need in found}


# --- LLaMA-2 7B -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seven_billion() -> NeedsCounter:
    return NeedsCounter(llama_7b(), lengths_of(COMPUTER_SCIENCE, PHILOSOPHY))


@pytest.mark.slow
def test_llama2_7b_fits_24_gb_at_the_lengths_of_mmlu(seven_billion: NeedsCounter) -> None:
    device = card("RTX-4090")
    found = by_phase(seven_billion.needs(preset(), memory=device.capacity, gpu=True))
    assert set(found) == {"training", "scores", "landscape", "plane", "forecast"}
    for need in found.values():
        assert 13.5 * GB < need.peak_bytes < device.required(need.peak_bytes) < 24 * GB
    assert misfit(seven_billion, preset(), device) is None
    # Another program's count, with another stand-in for the device, of the same items: peaks in GB.
    assert found["training"].peak_bytes == pytest.approx(16.50 * GB, rel=0.15)
    assert found["scores"].peak_bytes == pytest.approx(13.93 * GB, rel=0.15)
    assert found["landscape"].peak_bytes == pytest.approx(14.23 * GB, rel=0.15)
    assert found["plane"].peak_bytes == pytest.approx(14.44 * GB, rel=0.15)
    assert found["training"].flops == pytest.approx(171.91e12, rel=0.01)


@pytest.mark.slow
def test_llama2_7b_fits_40_gb_at_1024_tokens() -> None:
    counter, device = (
        NeedsCounter(llama_7b(), longest_lengths(preset("--data.max_tokens", "1024").data)),
        card("A100-40"),
    )
    found = counter.needs(preset(), memory=device.capacity, gpu=True)
    assert all(device.required(need.peak_bytes) < 40 * GB for need in found)
    assert misfit(counter, preset(), device) is None


@pytest.mark.slow
@pytest.mark.parametrize(("gigabytes", "options"), [(30, ()), (24, ("--data.max_tokens", "448"))])
def test_the_readmes_cards_hold_llama2_7b_whatever_the_questions_are(gigabytes: int, options: tuple[str, ...]) -> None:
    config, device = preset(*options), gpu(gigabytes)
    counter = NeedsCounter(llama_7b(), longest_lengths(config.data))
    found = counter.needs(config, memory=device.capacity, gpu=True)
    assert max(device.required(need.peak_bytes) for need in found) < gigabytes * GB
    assert misfit(counter, config, device) is None


@pytest.mark.slow
def test_on_24_gb_items_of_1024_tokens_leave_out_the_forecast() -> None:
    """Training goes on in halves by itself; the tangent pass of a single item is too much, and the message says so."""
    counter, device = (
        NeedsCounter(llama_7b(), longest_lengths(preset("--data.max_tokens", "1024").data)),
        card("RTX-4090"),
    )
    found = by_phase(counter.needs(preset(), memory=device.capacity, gpu=True))
    # The other program's count of 16 items of 1,024 tokens, and of one for the forecast.
    assert found["training"].peak_bytes == pytest.approx(23.56 * GB, rel=0.15)
    assert found["scores"].peak_bytes == pytest.approx(15.42 * GB, rel=0.15)
    assert found["forecast"].peak_bytes == pytest.approx(28.08 * GB, rel=0.15)
    problem = misfit(counter, preset(), device)
    assert problem is not None
    assert (problem.phase, problem.options) == ("forecast", ("curvature.forecast=false",))
    assert misfit(counter, preset("--curvature.forecast", "false"), device) is None


# --- a model of few layers counts for all -----------------------------------------------------------------------------

EVERYTHING = ExperimentConfig(
    model=ModelConfig(name="embedded", dtype="bfloat16"),
    data=DataConfig(train_items=12, test_items=12),
    training=TrainingConfig(batch_size=4),
    curvature=CurvatureConfig(spectrum=True, lanczos_steps=5),
)
VARIANTS = {
    "as it is": {},
    "recomputed": {"training": TrainingConfig(batch_size=4, gradient_checkpointing=True)},
    "weight space": {"landscape": LandscapeConfig(space="weight")},
    "differences": {"curvature": CurvatureConfig(spectrum=True, products="differences")},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_and_three_layers_say_what_six_need(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly but for the rounding of sizes, although no layer is like another in what is alive when it is passed."""
    config = dataclasses.replace(EVERYTHING, **VARIANTS[variant])
    settings, lengths = (
        tiny_llama(num_hidden_layers=6, hidden_size=64).config,
        lengths_of(COMPUTER_SCIENCE[-24:], PHILOSOPHY[-24:]),
    )
    few = NeedsCounter(settings, lengths).needs(config, memory=int(GB), gpu=True)
    monkeypatch.setattr(needs, "are_alike", lambda layers: False)
    whole = NeedsCounter(settings, lengths).needs(config, memory=int(GB), gpu=True)
    assert [need.phase for need in few] == [need.phase for need in whole] == list(PIECES)
    for one, other in zip(few, whole, strict=True):
        assert one.flops == other.flops, one.phase
        assert one.peak_bytes == pytest.approx(other.peak_bytes, rel=0.005), one.phase


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_gpu_is_asked_for_by_name() -> None:
    assert card("h100") is CARDS["H100"]
    with pytest.raises(UserError, match="must be one of RTX-4090, A100-40, A100-80, H100, H200, was 'H1000'"):
        card("H1000")


def test_a_gpu_of_this_machine_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "NVIDIA A100-SXM4-40GB", 42_298_834_944

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    device = tables.own_device("auto")
    assert (device.name, device.memory, device.gpu) == (Properties.name, Properties.total_memory, True)
    assert device.rate("float32") == CARDS["A100-80"].rate("float32")
    assert tables.own_device("cpu").name == "this CPU"
    Properties.name = "NVIDIA B300"
    assert tables.own_device("auto").rate("float32") is None


def test_rates_are_the_makers_with_a_share_of_them_reached() -> None:
    assert CARDS["A100-80"].rate("bfloat16") == pytest.approx(0.4 * 312e12)
    assert CARDS["A100-80"].rate("float32") == pytest.approx(0.8 * 19.5e12)
    assert 1e8 < matrix_rate() < 1e14
    assert CARDS["H100"].required(10 * GB) == 11 * GB + CONTEXT


# --- what fits, and what would make it fit ----------------------------------------------------------------------------


def small(**changes: Any) -> ExperimentConfig:
    base = {
        "data": DataConfig(train_items=64, test_items=8, max_tokens=300),
        "training": TrainingConfig(batch_size=16),
        "curvature": CurvatureConfig(forecast=False),
    }
    return ExperimentConfig(**{**base, **changes})


@pytest.fixture(scope="module")
def counter() -> NeedsCounter:
    """Four layers, of which a training batch of 16 items of 300 tokens keeps some hundred MB."""
    settings = tiny_llama(num_hidden_layers=4, hidden_size=128, intermediate_size=384).config
    return NeedsCounter(settings, longest_lengths(small().data))


def applied(config: ExperimentConfig, text: str) -> ExperimentConfig:
    """The configuration with an option as a message names it."""
    changes: dict[str, dict[str, object]] = {}
    for part in text.replace(" with ", " and ").split(" and "):
        path, _, value = part.partition("=")
        section, _, name = path.partition(".")
        typed = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
        changes.setdefault(section, {})[name] = typed
    sections = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in changes.items()}
    return dataclasses.replace(config, **sections)


def peak(counter: NeedsCounter, config: ExperimentConfig, phase: str) -> int:
    least = fit.in_smallest_batches(config)
    return by_phase(counter.needs(least, memory=int(GB), gpu=True))[phase].peak_bytes


SPECTRUM = CurvatureConfig(spectrum=True, forecast=False, lanczos_steps=2000)
ROWS = LandscapeConfig(points_per_forward=64)
SHORT_OF = {
    "training": (small(), 0.9),
    "training, a little": (small(model=ModelConfig(dtype="float32")), 0.97),
    "landscape": (small(landscape=ROWS), 0.5),
    "forecast": (small(curvature=CurvatureConfig()), 0.9),
    "spectrum": (small(curvature=SPECTRUM), 0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SHORT_OF)
def test_every_option_that_is_named_makes_the_phase_fit(counter: NeedsCounter, case: str) -> None:
    config, share = SHORT_OF[case]
    phase = case.partition(",")[0]
    device = gpu((1.1 * share * peak(counter, config, phase) + CONTEXT) / GB)
    problem = misfit(counter, config, device)
    assert problem is not None
    assert problem.phase == phase
    assert problem.options
    assert problem.required > problem.available == device.memory
    for option in problem.options:
        after = misfit(counter, applied(config, option), device)
        assert after is None or after.phase != phase, option


def test_nothing_is_named_where_nothing_helps(counter: NeedsCounter) -> None:
    config = small(
        model=ModelConfig(dtype="bfloat16"), training=TrainingConfig(batch_size=1, gradient_checkpointing=True)
    )
    problem = misfit(counter, config, gpu(0.501))
    assert problem is not None
    assert str(problem).endswith("take a smaller model, or a GPU with more memory")


def test_a_run_that_cannot_fit_ends_in_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    tiny_llama(num_hidden_layers=4, hidden_size=128).config.save_pretrained(tmp_path)  # no weights, no tokenizer
    config = small(
        model=ModelConfig(name=str(tmp_path)), data=DataConfig(source="synthetic", tasks=("synthetic_1", "synthetic_2"))
    )
    line = r"^training needs 0\.5 GB of memory, a small GPU has 0\.5 GB; (set|take) "
    with pytest.raises(UserError, match=line) as told:
        require_fit(config, print, gpu(0.501))
    assert "\n" not in str(told.value)
    require_fit(config, print, gpu(24))
    require_fit(config, print, this_cpu())


def test_a_cpu_is_not_asked_for_more_than_a_bound_where_that_is_enough(counter: NeedsCounter) -> None:
    """The bound of what need not be counted is above what is counted."""
    config = small()
    counted = max(need.peak_bytes for need in counter.needs(config, memory=int(24 * GB), gpu=False))
    assert counter.surely_fits(config, int(24 * GB), gpu=False)
    assert not counter.surely_fits(config, counted, gpu=False)


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_a_models_size_is_read_and_guessed_only_where_nothing_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "nothing"))
    for name, count in (("embedded", 134_515_008), ("synthetic", 82_368)):  # before they are made
        found = model_settings(ModelConfig(name=name))
        assert found is not None
        assert parameters(found.settings) == count
        assert local_tokenizer(ModelConfig(name=name)) is None
    save(tmp_path / "folder", tiny_llama(num_hidden_layers=3))
    found = model_settings(ModelConfig(name=str(tmp_path / "folder")))
    assert found is not None
    assert (found.settings.num_hidden_layers, found.origin) == (3, "its config.json")
    tokenizer = local_tokenizer(ModelConfig(name=str(tmp_path / "folder")))
    assert tokenizer is not None
    assert tokenizer("A b")["input_ids"] == llama2_tokenizer()("A b")["input_ids"]
    assert read_settings(ModelConfig(name="nobody/model-7b")) is None
    guess = model_settings(ModelConfig(name="nobody/model-7b"))
    assert guess is not None
    assert guess.origin == "guessed from its name"
    assert guess.settings.to_diff_dict() == {**llama_7b().to_diff_dict(), "num_key_value_heads": 32}
    assert model_settings(ModelConfig(name="nobody/model")) is None


def test_needs_are_none_where_no_size_is_known() -> None:
    assert needs.needs(ExperimentConfig(model=ModelConfig(name="nobody/model")), memory=int(GB)) == []


def test_lengths_are_those_of_the_data_with_or_without_a_tokenizer(tmp_path: Path) -> None:
    data = DataConfig(source="synthetic", tasks=("synthetic_1", "synthetic_2"), train_items=20, test_items=10)
    save(tmp_path, tiny_llama())
    exact = item_lengths(ExperimentConfig(model=ModelConfig(name=str(tmp_path)), data=data), print)
    about = item_lengths(ExperimentConfig(model=ModelConfig(name="nobody/model"), data=data), print)
    assert exact.notes == ()
    assert "4 characters count as a token" in about.notes[0]
    for one, other in zip(exact.tasks, about.tasks, strict=True):
        assert [len(one.train), len(one.test)] == [len(other.train), len(other.test)] == [20, 10]
        for a, b in zip(one.train, other.train, strict=True):  # that tokenizer knows characters
            assert len(b.input_ids) == pytest.approx(len(a.input_ids) / 4, abs=2)
        heads = {item.input_ids[:5] for item in other.train}
        assert len(heads) == 1


# --- without a network ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_network")
def test_without_a_network_data_and_model_say_so_at_once() -> None:
    from llm_forgetting.experiment.tasks import source_of, tasks_of
    from llm_forgetting.models.language.backbones import load_backbone

    data = DataConfig(source="hub", tasks=("philosophy", "anatomy"))
    started = time.perf_counter()
    with pytest.raises(UnreachableError, match=r"could not load the Hugging Face data set cais/mmlu \(philosophy\)"):
        tasks_of(data, source_of(data, print))
    with pytest.raises(UserError, match="the Hugging Face hub cannot be reached and it is not in the local cache"):
        load_backbone(ModelConfig(name="nobody/model-7b", device="cpu"), print)
    assert time.perf_counter() - started < 5  # a second, on a machine that has nothing else to do; 33 s before


# --- workers of a study -----------------------------------------------------------------------------------------------


class Plan:
    """As much of a study's plan as sharing a machine asks for."""

    def __init__(self, *configs: ExperimentConfig) -> None:
        self.cells = [type("Cell", (), {"config": config}) for config in configs]


def test_workers_on_gpus_are_capped_by_what_gpus_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by twice the weights in the host's memory, of which 40 GB let one worker of eight start."""
    plan: Any = Plan(*[preset("--training.seed", str(n)) for n in range(20)])
    memory = type("Memory", (), {"available": int(80 * GB), "total": int(100 * GB)})
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(workers, "own_device", lambda name: CARDS["A100-80"])
    monkeypatch.setattr(workers, "worker_bytes", lambda configs, device: 29.0 * GB)
    assert workers.share_machine(None, 2, [cell.config for cell in plan.cells], gpus=8) == (8, 2)
    assert workers.share_machine(16, 2, [cell.config for cell in plan.cells], gpus=8) == (16, 2)  # two on each
    line = r"--workers must be at most 16, was 17: a worker needs 29\.0 GB, and 8 GPUs have 80\.0 GB each"
    with pytest.raises(UserError, match=line):
        workers.share_machine(17, 2, [cell.config for cell in plan.cells], gpus=8)
    memory.available = int(20 * GB)
    assert workers.share_machine(None, 2, [cell.config for cell in plan.cells], gpus=8) == (2, 2)
    assert host_bytes([cell.config for cell in plan.cells]) == 8 * GB


def test_a_worker_takes_what_its_largest_phase_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExperimentConfig(
        model=ModelConfig(name="synthetic"), data=DataConfig(source="synthetic", tasks=("synthetic_1", "synthetic_2"))
    )
    counted: list[object] = []
    plain = NeedsCounter.needs
    monkeypatch.setattr(NeedsCounter, "needs", lambda self, c, **rest: counted.append(c) or plain(self, c, **rest))
    seeds = [dataclasses.replace(config, training=TrainingConfig(seed=n)) for n in range(5)]
    hungriest = dataclasses.replace(config, lora=LoraConfig(rank=64))
    found = worker_bytes([*seeds, hungriest], this_cpu())
    assert len(counted) == 2  # seeds change no need
    largest = needs.needs(fit.in_smallest_batches(hungriest), memory=this_cpu().capacity, gpu=False)
    assert found == this_cpu().required(max(need.peak_bytes for need in largest))
    assert worker_bytes([ExperimentConfig(model=ModelConfig(name="nobody/model"))], this_cpu()) == 0.0
