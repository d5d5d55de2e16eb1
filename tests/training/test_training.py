"""Fine-tuning: gradients and losses against plain torch, what may change, order, and going on after a kill."""

import itertools
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killed
from test_manifest import flip
from tiny_models import adapter_of, load, make_encoded, plain_losses

from llm_forgetting.config.sections import TrainingConfig
from llm_forgetting.errors import UserError
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score
from llm_forgetting.seeding import derive_seed
from llm_forgetting.training import fine_tuning as training
from llm_forgetting.training.fine_tuning import LengthBucketSampler, fine_tune, optimizer_steps

pytestmark = pytest.mark.usefixtures("one_thread")

Train = Callable[..., list[dict[str, float]]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`fine_tune` with small defaults and a scratch folder per call unless one is given."""
    calls = iter(range(1000))

    def run(
        model: LanguageModel,
        items: list[EncodedItem],
        *,
        stream: str = "task1",
        scratch: Path | None = None,
        advance: Callable[[int, str], None] = lambda steps, text: None,
        **settings: Any,
    ) -> list[dict[str, float]]:
        config = TrainingConfig(**{"batch_size": 4, "num_epochs": 2, "learning_rate": 1e-2, **settings})
        folder = scratch or tmp_path / f"scratch{next(calls)}"
        return fine_tune(model, items, config, stream=stream, scratch=folder, advance=advance)

    return run


@pytest.mark.parametrize(("batch_size", "accumulation"), [(16, 1), (4, 4), (1, 16)])
def test_first_step_is_the_mean_over_its_items(
    batch_size: int, accumulation: int, any_folder: Path, train: Train
) -> None:
    """Loss and gradient norm of 16 x 1, 4 x 4 and 1 x 16 are those of plain torch on all 16 items."""
    model = load(any_folder)
    items = make_encoded(model, 16, [4, 2, 5])
    parameters = [p for p in model.peft_model.parameters() if p.requires_grad]
    loss = plain_losses(model, items).mean()
    gradients = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    (entry,) = train(
        model, items, batch_size=batch_size, gradient_accumulation_steps=accumulation, num_epochs=1, max_grad_norm=1e9
    )
    assert entry.loss == pytest.approx(loss.item(), rel=1e-5)
    assert entry.grad_norm == pytest.approx(norm, rel=1e-5)
    assert entry.step == 1


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 4), (1, 16), (5, 3)])
def test_accumulation_is_the_training_of_one_large_batch(
    batch_size: int, accumulation: int, llama_folder: Path, train: Train
) -> None:
    """The same items in every step, each of the same weight: the last step of 38 items holds 6 of them, in 4 + 2, or 8."""
    large, small = load(llama_folder), load(llama_folder)
    items = make_encoded(large, 38, [4, 2, 5])
    settings: dict[str, Any] = {"num_epochs": 2, "optimizer": "sgd", "learning_rate": 0.1}
    whole = train(large, items, batch_size=batch_size * accumulation, **settings)
    split = train(small, items, batch_size=batch_size, gradient_accumulation_steps=accumulation, **settings)
    assert [entry.loss for entry in split] == pytest.approx([entry.loss for entry in whole], rel=1e-4)
    moved = adapter_of(large) - adapter_of(load(llama_folder))
    assert float((adapter_of(small) - adapter_of(large)).norm()) < 1e-4 * float(moved.norm())


@pytest.mark.parametrize("settings", [{"batch_size": 8}, {"batch_size": 4, "gradient_accumulation_steps": 2}])
def test_a_batch_that_does_not_fit_is_the_same_batch_in_halves(
    settings: dict[str, Any], llama_folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the backward pass of more than three items, when half of the gradient is there."""
    whole, small = load(llama_folder), load(llama_folder)
    items = make_encoded(whole, 22, [4, 2, 5])
    sgd: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, **settings}
    expected = train(whole, items, **sgd)
    sizes: list[int] = []
    parameter = next(p for p in small.peft_model.parameters() if p.requires_grad)  # of the first layer: reached last

    def noted(model: LanguageModel, given: Sequence[EncodedItem], **options: Any) -> torch.Tensor:
        sizes.append(len(given))
        return answer_losses(model, given, **options)

    def full(gradient: torch.Tensor) -> None:
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "answer_losses", noted)
    parameter.register_hook(full)
    found = train(small, items, **sgd)
    assert max(sizes[2:]) <= 3  # once is enough to know
    assert [entry.loss for entry in found] == pytest.approx([entry.loss for entry in expected], rel=1e-4)
    moved = adapter_of(whole) - adapter_of(load(llama_folder))
    assert float((adapter_of(small) - adapter_of(whole)).norm()) < 1e-4 * float(moved.norm())


def test_one_step_of_gradient_descent(llama_folder: Path, train: Train) -> None:
    """SGD without momentum: theta - lr g, exactly what plain torch computes."""
    model = load(llama_folder)
    items = make_encoded(model, 8)
    parameters = [p for p in model.peft_model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(plain_losses(model, items).mean(), parameters)
    expected = [p.detach() - 0.1 * g for p, g in zip(parameters, gradients, strict=True)]
    train(
        model, items, batch_size=8, num_epochs=1, optimizer="sgd", learning_rate=0.1, lr_scheduler="constant",
        max_grad_norm=0.0,
    )  # fmt: skip
    for found, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_training_loss_is_the_loss_that_is_evaluated(llama_folder: Path, train: Train) -> None:
    model = load(llama_folder)
    items = make_encoded(model, 12)
    before = float(score(model, items, 5).surface("loss"))
    (entry,) = train(model, items, batch_size=12, num_epochs=1)
    assert entry.loss == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_losses_of_a_batch_are_the_items_own_in_their_order(any_folder: Path, packed: bool) -> None:
    model = load(any_folder)
    items = make_encoded(model, 6)
    assert model.supports_packing
    found = answer_losses(model, items, packed=packed)
    torch.testing.assert_close(found, plain_losses(model, items), atol=1e-5, rtol=1e-5)
    found[2].backward()
    gradient = gradient_of(model)
    model.peft_model.zero_grad()
    plain_losses(model, [items[2]])[0].backward()
    torch.testing.assert_close(gradient, gradient_of(model), atol=1e-5, rtol=1e-4)
    assert gradient.abs().max() > 0.01


def gradient_of(model: LanguageModel) -> torch.Tensor:
    """Of all adapter weights, in one vector."""
    return torch.cat([p.grad.reshape(-1).clone() for p in model.peft_model.parameters() if p.grad is not None])


def test_training_learns_and_changes_the_adapter_alone(any_folder: Path, train: Train) -> None:
    model = load(any_folder, trained=False)
    items = make_encoded(model, 12)
    state = {name: tensor.clone() for name, tensor in model.peft_model.state_dict().items()}
    before = float(score(model, items, 8).surface("loss"))
    history = train(model, items, num_epochs=4)
    assert len(history) == 12
    assert float(score(model, items, 8).surface("loss")) < 0.9 * before
    for name, tensor in model.peft_model.state_dict().items():
        assert torch.equal(tensor, state[name]) == ("lora_" not in name), name
    assert not model.peft_model.training


def test_log_has_one_finite_entry_per_step(llama_folder: Path, train: Train) -> None:
    model = load(llama_folder)
    told: list[int] = []
    history = train(
        model, make_encoded(model, 10), num_epochs=3, warmup_ratio=0.3, advance=lambda steps, text: told.append(steps)
    )
    assert [entry.step for entry in history] == list(range(1, 10))
    assert sum(told) == 9
    assert history[-1].epoch == 3
    for entry in history:
        assert set(vars(entry)) == {"epoch", "step", "loss", "grad_norm", "learning_rate"}
        assert all(math.isfinite(value) for value in vars(entry).values())
    # warm-up over ceil(0.3 x 9) = 3 steps, then a straight line to 0 after step 9
    rates = [entry.learning_rate / 1e-2 for entry in history]
    np.testing.assert_allclose(rates, [0, 1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], atol=1e-9)


@pytest.mark.slow
def test_every_call_starts_a_fresh_optimiser(llama_folder: Path, train: Train, tmp_path: Path) -> None:
    """The second task after the first in one process = the second task by a process that only loads the adapter."""
    model = load(llama_folder)
    first, second = make_encoded(model, 8, seed=1), make_encoded(model, 8, seed=2)
    train(model, first)
    (tmp_path / "after_first").mkdir()
    model.save(tmp_path / "after_first")
    train(model, second, stream="task2")

    other = load(llama_folder, seed=9)
    other.load_adapter_weights(tmp_path / "after_first")
    train(other, second, stream="task2")
    assert other.adapter_sha256() == model.adapter_sha256()


@pytest.mark.slow
def test_training_is_decided_by_seed_and_stream(llama_folder: Path, train: Train) -> None:
    def result(**settings: Any) -> str:
        torch.manual_seed(len(str(settings)))
        model = load(llama_folder, dropout=0.3)
        train(model, make_encoded(model, 8), num_epochs=1, **settings)
        return model.adapter_sha256()

    assert result() == result(stream="task1", seed=0)
    assert len({result(), result(seed=1), result(stream="task2")}) == 3


@pytest.mark.parametrize("count", [1, 3, 16, 17, 40, 61])
def test_sampler_gives_every_item_once_per_epoch(count: int) -> None:
    lengths = np.random.default_rng(0).integers(5, 90, size=count).tolist()
    sampler = LengthBucketSampler(lengths, 4, seed=1)
    assert len(sampler) == count
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(count))


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, size=40).tolist()

    def order(seed: int, epoch: int, before: int = 0) -> list[int]:
        sampler = LengthBucketSampler(lengths, 4, seed)
        for earlier in range(before):
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    np.random.seed(0)
    torch.manual_seed(0)
    orders = [order(0, 0), order(0, 1), order(0, 2), order(1, 0)]
    assert len({tuple(one) for one in orders}) == 4
    assert order(0, 2, before=2) == order(0, 2) == orders[2]


def test_batches_are_of_like_length_and_in_other_company_every_epoch() -> None:
    lengths = list(range(64))
    sampler = LengthBucketSampler(lengths, 4, seed=0)
    companies = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        batches = [order[start : start + 4] for start in range(0, 64, 4)]
        spreads = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
        assert np.mean(spreads) < 25  # 64 items in batches of 4: 38 in a random order
        # not sorted by length over the epoch
        assert 4 < sum(batches[n][0] < batches[n + 1][0] for n in range(15)) < 12
        companies.append({frozenset(batch) for batch in batches})
    assert len(companies[0] & companies[1]) < 4


def test_short_batch_comes_last() -> None:
    """Elsewhere it would shift the borders of all batches after it, for the batches are cut from the order."""
    lengths = list(range(30))
    for seed in range(10):
        order = list(LengthBucketSampler(lengths, 4, seed))
        # every whole batch is one of those that were sorted: descending lengths
        for start in range(0, 28, 4):
            batch = [lengths[index] for index in order[start : start + 4]]
            assert batch == sorted(batch, reverse=True)


def test_trainer_follows_the_sampler_epoch_by_epoch(
    llama_folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(llama_folder)
    items = make_encoded(model, 22)
    texts = [item.input_ids for item in items]
    assert len(set(texts)) == 22
    seen: list[list[int]] = []
    whole = training.answer_losses

    def recording(model: LanguageModel, items: Sequence[EncodedItem], *, packed: bool) -> torch.Tensor:
        seen.append([texts.index(item.input_ids) for item in items])
        return whole(model, items, packed=packed)

    monkeypatch.setattr(training, "answer_losses", recording)
    train(model, items, stream="task2", seed=5, num_epochs=2)
    sampler = LengthBucketSampler([len(text) for text in texts], 4, derive_seed(5, "training", "task2") % 2**32)
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        expected += [order[start : start + 4] for start in range(0, 22, 4)]
    assert seen == expected


@pytest.mark.slow
@pytest.mark.parametrize(("killed_after", "dropout"), [(2, 0.4), (4, 0.0), (4, 0.4), (8, 0.4)])
def test_a_killed_run_goes_on_to_the_same_bits(
    killed_after: int, dropout: float, llama_folder: Path, train: Train, tmp_path: Path
) -> None:
    """3 epochs of 3 steps, killed within the first, second or third; optimiser, schedule, order and dropout go on."""
    settings: dict[str, Any] = {"num_epochs": 3, "warmup_ratio": 0.2}

    def fresh() -> tuple[LanguageModel, list[EncodedItem]]:
        model = load(llama_folder, dropout=dropout)
        return model, make_encoded(model, 10)

    whole, items = fresh()
    expected = train(whole, items, **settings)

    model, items = fresh()
    told: list[int] = []

    def kill(steps: int, text: str) -> None:
        told.append(steps)
        if sum(told) == killed_after:
            raise Killed

    scratch = tmp_path / "resume files"
    with pytest.raises(Killed):
        train(model, items, scratch=scratch, advance=kill, **settings)
    assert not model.peft_model.training

    model, items = fresh()
    torch.manual_seed(999)  # a new process has another global state
    told.clear()
    found = train(model, items, scratch=scratch, advance=lambda steps, text: told.append(steps), **settings)
    assert sum(told) == 9 - 3 * (killed_after // 3)
    assert model.adapter_sha256() == whole.adapter_sha256()
    assert found == expected


def test_a_run_killed_after_its_last_epoch_has_nothing_left_to_do(
    llama_folder: Path, train: Train, tmp_path: Path
) -> None:
    models = [load(llama_folder) for _ in range(2)]
    items = make_encoded(models[0], 6)
    told: list[int] = []
    histories = [
        train(model, items, scratch=tmp_path / "same", advance=lambda steps, text: told.append(steps))
        for model in models
    ]
    assert sum(told) == 4
    assert histories[0] == histories[1]
    assert models[0].adapter_sha256() == models[1].adapter_sha256()


def test_half_written_resume_files_are_not_resumed_from(llama_folder: Path, train: Train, tmp_path: Path) -> None:
    model = load(llama_folder)
    items = make_encoded(model, 8)
    expected = train(load(llama_folder), items)
    (tmp_path / "resume" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "resume" / "checkpoint-2" / "adapter_config.json").write_text("{")
    assert train(model, items, scratch=tmp_path / "resume") == expected


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_a_damaged_resume_file_is_passed_over_for_the_one_before_and_a_line_says_so(
    llama_folder: Path, train: Train, tmp_path: Path
) -> None:
    items = make_encoded(load(llama_folder), 8)
    scratch = tmp_path / "resume"
    whole = load(llama_folder)
    expected = train(whole, items, scratch=scratch)
    names = {path.name for path in (scratch / "checkpoint-4").iterdir()}
    assert names > {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"}
    for name, damage in itertools.product(sorted(names), (cut, empty, flip, Path.unlink)):
        said: list[str] = []
        copy = shutil.copytree(scratch, tmp_path / "copy")
        damage(copy / "checkpoint-4" / name)
        assert training._last_checkpoint(copy, said.append) == str(copy / "checkpoint-2"), (name, damage)
        (line,) = said
        assert line.endswith("is damaged or was not written whole: training goes on from checkpoint-2")
        damage(copy / "checkpoint-2" / name)
        assert training._last_checkpoint(copy, said.append) is None
        assert said[1].endswith("training starts again")
        shutil.rmtree(copy)
    flip(scratch / "checkpoint-4" / "optimizer.pt")
    told: list[int] = []
    model = load(llama_folder)
    assert train(model, items, scratch=scratch, advance=lambda steps, text: told.append(steps)) == expected
    assert sum(told) == 2
    assert model.adapter_sha256() == whole.adapter_sha256()


def test_gradient_checkpointing_only_saves_memory(any_folder: Path, train: Train) -> None:
    models, calls = [], []
    for checkpointing in (False, True):
        model = load(any_folder)
        assert model.supports_packing  # tried out here, not while forwards are counted
        forwards: list[int] = []
        norms = (".layers.0.input_layernorm", ".h.0.ln_1")
        norm = next(module for name, module in model.peft_model.named_modules() if name.endswith(norms))
        hook = norm.register_forward_pre_hook(lambda module, args, kept=forwards: kept.append(1))
        train(model, make_encoded(model, 8), num_epochs=1, gradient_checkpointing=checkpointing)
        hook.remove()
        calls.append(len(forwards))
        models.append(model)
    assert calls == [2, 4]  # two batches, each block run again in the backward pass
    torch.testing.assert_close(adapter_of(models[1]), adapter_of(models[0]), rtol=0, atol=1e-5)
    assert float((adapter_of(models[0]) - adapter_of(load(any_folder))).abs().max()) > 1e-3


def test_bfloat16_backbone_trains_a_float32_adapter(llama_folder: Path, train: Train) -> None:
    model = load(llama_folder, dtype="bfloat16")
    items = make_encoded(model, 8)
    before = adapter_of(model)
    history = train(model, items, num_epochs=4)
    trained = [p for p in model.peft_model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert model.dtype == torch.bfloat16
    assert float((adapter_of(model) - before).abs().max()) > 1e-3
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize("checkpointing", [False, True])
def test_on_a_cpu_a_bfloat16_backbone_is_trained_as_the_same_weights_in_float32(
    checkpointing: bool, llama_folder: Path, train: Train, tmp_path: Path
) -> None:
    narrow = load(llama_folder, dtype="bfloat16")
    wide = load(llama_folder)
    with torch.no_grad():
        for weight, same in zip(wide.peft_model.parameters(), narrow.peft_model.parameters(), strict=True):
            weight.copy_(same)
    settings = {"num_epochs": 2, "optimizer": "sgd", "learning_rate": 0.1, "gradient_checkpointing": checkpointing}
    histories = [train(model, make_encoded(model, 8), **settings) for model in (narrow, wide)]
    assert [entry.loss for entry in histories[0]] == pytest.approx([entry.loss for entry in histories[1]], rel=1e-6)
    torch.testing.assert_close(adapter_of(narrow), adapter_of(wide), rtol=0, atol=1e-6)
    assert "forward" not in {name for module in narrow.peft_model.modules() for name in vars(module)}


def test_a_precision_that_accelerate_was_told_elsewhere_changes_nothing(
    llama_folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    for precision in (None, "bf16"):
        if precision:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        model = load(llama_folder)
        train(model, make_encoded(model, 8), num_epochs=1)
        trained.append(adapter_of(model))
        assert os.environ.get("ACCELERATE_MIXED_PRECISION") == precision
    assert torch.equal(*trained)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_that_is_no_number_stops_the_run(checkpointing: bool, llama_folder: Path, train: Train) -> None:
    model = load(llama_folder)
    with pytest.raises(UserError, match=r"training loss became nan at step 2; lower training\.learning_rate") as error:
        train(
            model, make_encoded(model, 8), optimizer="sgd", learning_rate=1e30, lr_scheduler="constant",
            max_grad_norm=0.0, gradient_checkpointing=checkpointing,
        )  # fmt: skip
    assert "\n" not in str(error.value)
    assert "was 1e+30" in str(error.value)
    assert not model.peft_model.training


@pytest.mark.parametrize("setting", [{"optimizer": "no_such_optimiser"}, {"lr_scheduler": "no_such_schedule"}])
def test_unknown_optimiser_or_schedule(setting: dict[str, str], llama_folder: Path, train: Train) -> None:
    model = load(llama_folder)
    with pytest.raises(UserError, match="must be names that transformers knows") as error:
        train(model, make_encoded(model, 4), **setting)
    assert next(iter(setting.values())) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [{"optimizer": "galore_adamw"}, {"optimizer": "lomo"}, {"lr_scheduler": "warmup_stable_decay"}],
)
def test_names_that_need_more_than_a_name(setting: dict[str, str], llama_folder: Path, train: Train) -> None:
    """Known to transformers, but they want another package or arguments that there is no setting for."""
    model = load(llama_folder)
    with pytest.raises(UserError, match="must work without another package or further arguments") as error:
        train(model, make_encoded(model, 4), **setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("optimizer", "schedule"), [("sgd", "cosine"), ("adafactor", "constant_with_warmup"), ("rmsprop", "polynomial")]
)
def test_optimisers_and_schedules_of_transformers(
    optimizer: str, schedule: str, llama_folder: Path, train: Train
) -> None:
    model = load(llama_folder)
    before = model.adapter_sha256()
    history = train(model, make_encoded(model, 4), num_epochs=2, optimizer=optimizer, lr_scheduler=schedule)
    assert len(history) == 2
    assert model.adapter_sha256() != before


@pytest.mark.parametrize(
    ("items", "batch_size", "accumulation", "epochs", "steps"),
    [(40, 4, 1, 5, 50), (40, 4, 4, 5, 15), (10, 4, 1, 3, 9), (10, 4, 2, 3, 6), (1, 8, 4, 2, 2), (16, 16, 1, 1, 1)],
)
def test_optimizer_steps(items: int, batch_size: int, accumulation: int, epochs: int, steps: int) -> None:
    config = TrainingConfig(batch_size=batch_size, gradient_accumulation_steps=accumulation, num_epochs=epochs)
    assert optimizer_steps(items, config) == steps


@pytest.mark.parametrize(("count", "batch_size", "accumulation"), [(10, 4, 2), (7, 2, 3), (5, 8, 2)])
def test_optimizer_steps_are_those_that_are_made(
    count: int, batch_size: int, accumulation: int, llama_folder: Path, train: Train
) -> None:
    model = load(llama_folder)
    config = TrainingConfig(batch_size=batch_size, gradient_accumulation_steps=accumulation, num_epochs=2)
    history = train(model, make_encoded(model, count), batch_size=batch_size, gradient_accumulation_steps=accumulation)
    assert len(history) == optimizer_steps(count, config)
