"""SAM against its closed form and pytorch-optimizer's, the anchor against dense matrices, and what each is for."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killed, KillingProgress
from pytorch_optimizer import SAM
from tiny_models import adapter_of, load, make_encoded, plain_losses
from torch.nn.utils import clip_grad_norm_
from transformers import Trainer

import llm_forgetting as lf
from llm_forgetting.config.files import parse_config
from llm_forgetting.config.sections import ExperimentConfig, InterventionsConfig, TrainingConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.experiment import train as train_phase
from llm_forgetting.experiment.session import Session
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors, regauged
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import score
from llm_forgetting.progress import Silent
from llm_forgetting.results import InterventionRecord
from llm_forgetting.training import fine_tuning as training
from llm_forgetting.training.fine_tuning import LengthBucketSampler, fine_tune
from llm_forgetting.training.method import Method, Methods, Start
from llm_forgetting.training.methods.anchor import Anchor, AnchorOptions
from llm_forgetting.training.methods.replay import Replay, replay_subset
from llm_forgetting.training.methods.sam import Sam, SamOptions, SharpnessAware, TwoPasses

pytestmark = pytest.mark.usefixtures("one_thread")

Train = Callable[..., list[dict[str, float]]]
BATCHES = [(16, 1), (4, 4), (1, 16)]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`fine_tune` with small defaults and a scratch folder per call."""
    calls = iter(range(1000))

    def run(model: LanguageModel, items: list[EncodedItem], methods: Methods | None = None, **settings: Any):  # type: ignore[no-untyped-def]
        config = TrainingConfig(**{"batch_size": 4, "num_epochs": 2, "learning_rate": 1e-2, **settings})
        scratch = tmp_path / f"scratch{next(calls)}"
        return fine_tune(model, items, config, stream="task1", scratch=scratch, methods=methods)

    return run


def intervene(settings: InterventionsConfig, model: LanguageModel, earlier: list[EncodedTask], seed: int) -> Methods:
    """The methods that `settings` mean for the task after `earlier`, begun."""
    methods = Methods.of(ExperimentConfig(interventions=settings), len(earlier) + 1)
    task = EncodedTask("new", (), ())
    methods.begin(Start(model, task, number=len(earlier) + 1, earlier=tuple(earlier), seed=seed))
    return methods


def one(kind: type[Method[Any]], methods: Methods) -> Any:
    """The only method of a kind; None where there is none."""
    return next((method for method in methods.methods if isinstance(method, kind)), None)


def sam_of(rho: float, adaptive: bool = False) -> Methods:
    return Methods((Sam(SamOptions(rho, adaptive)),))


def anchor_at(strength: float, start: Any) -> Anchor:
    anchor = Anchor(AnchorOptions(strength))
    anchor.start = start
    return anchor


def trained_parameters(model: LanguageModel) -> list[torch.Tensor]:
    return [p for p in model.peft_model.parameters() if p.requires_grad]


# --- off ----------------------------------------------------------------------------------------------------------------------


class PlainTrainer(Trainer):
    """The training loop without any intervention, written down a second time."""

    def __init__(self, language_model: LanguageModel, sampler: LengthBucketSampler, **kwargs: Any) -> None:
        del kwargs["packed"], kwargs["methods"]
        super().__init__(model=language_model.peft_model, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._language_model, self._sampler = language_model, sampler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return answer_losses(self._language_model, inputs["items"]).mean()

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBucketSampler:
        return self._sampler


@pytest.mark.slow
def test_by_default_training_is_bit_identical_to_a_plain_trainer(
    llama_folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"gradient_accumulation_steps": 2, "num_epochs": 3}
    off, plain = (load(llama_folder, dropout=0.3) for _ in range(2))
    log = train(off, make_encoded(off, 10), **settings)
    monkeypatch.setattr(training, "AnswerTrainer", PlainTrainer)
    assert train(plain, make_encoded(plain, 10), **settings) == log
    assert off.adapter_sha256() == plain.adapter_sha256()


def test_by_default_nothing_intervenes(llama_folder: Path) -> None:
    model = load(llama_folder)
    before = model.adapter_sha256()
    for earlier in ([], [EncodedTask("trees", tuple(make_encoded(model, 4)), ())]):
        found = intervene(InterventionsConfig(), model, earlier, seed=0)
        assert found == Methods()
        assert found.items() == []
        assert found.record(model) == InterventionRecord(sam=None, replayed={}, anchor=None, rescale=1.0)
    assert model.adapter_sha256() == before


# --- SAM ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adaptive", "expected"), [(False, (2.969925, 3.590028)), (True, (2.969831, 3.560063))])
def test_one_step_of_sam_on_a_quadratic(adaptive: bool, expected: tuple[float, float]) -> None:
    """w = (3, 4), H = diag(1, 10), lr 0.01, rho 0.1: worked by hand, and what pytorch-optimizer 4.1.0 gives."""
    H, start = torch.tensor([1.0, 10.0]).double(), torch.tensor([3.0, 4.0]).double()
    w = start.clone().requires_grad_()

    def backward() -> torch.Tensor:
        loss = (H * w.square()).sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    loss = TwoPasses(SharpnessAware(0.1, adaptive), [w]).add(backward, last=True)
    assert float(loss) == 84.5
    assert torch.equal(w.detach(), start)
    T = start.abs() if adaptive else torch.ones(2).double()
    by_hand = H * (start + 0.1 * T**2 * H * start / (T * H * start).norm())
    torch.testing.assert_close(w.grad, by_hand, rtol=1e-11, atol=0)
    torch.testing.assert_close(start - 0.01 * by_hand, torch.tensor(expected).double(), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_size", "accumulation", "adaptive"), [*((*batches, False) for batches in BATCHES), (4, 4, True)]
)
def test_sam_in_trainer_is_that_of_pytorch_optimizer(
    batch_size: int, accumulation: int, adaptive: bool, any_folder: Path, train: Train
) -> None:
    """Three steps of AdamW on 16 items, with clipping and a learning rate that falls, however they are cut into batches."""
    model, other = load(any_folder), load(any_folder)
    items, rho, clip, rate = make_encoded(model, 16, [4, 2, 5]), 0.5 if adaptive else 0.05, 0.5, 3e-3
    log = train(
        model, items, sam_of(rho, adaptive), batch_size=batch_size, learning_rate=rate,
        gradient_accumulation_steps=accumulation, num_epochs=3, max_grad_norm=clip,
    )  # fmt: skip

    parameters = trained_parameters(other)
    optimizer = SAM(parameters, torch.optim.AdamW, rho=rho, adaptive=adaptive, lr=rate, weight_decay=0.0)
    losses, norms = [], []

    def descend() -> None:
        optimizer.zero_grad()
        loss = plain_losses(other, items).mean()
        loss.backward()
        losses.append(loss.item())
        norms.append(float(clip_grad_norm_(parameters, clip)))

    for step in range(3):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / 3)
        optimizer.zero_grad()
        plain_losses(other, items).mean().backward()
        optimizer.step(descend)
    assert [entry.grad_norm for entry in log] == pytest.approx(norms, rel=2e-3)
    moved = adapter_of(other) - adapter_of(load(any_folder))
    assert float((adapter_of(model) - adapter_of(other)).norm()) < 5e-3 * float(moved.norm())
    plainly = load(any_folder)
    train(plainly, items, batch_size=16, num_epochs=3, max_grad_norm=clip, learning_rate=rate)
    assert float((adapter_of(plainly) - adapter_of(other)).norm()) > 5e-2 * float(moved.norm())
    assert min(losses) > log[0].loss - 1  # of the ascended weights; the log's is that of the weights themselves
    assert log[0].loss == pytest.approx(plain_losses(load(any_folder), items).mean().item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sam_with_no_radius_is_bit_identical_to_training_without(
    checkpointing: bool, llama_folder: Path, train: Train
) -> None:
    """At rho = 1e-30 the ascended weights are the weights: order, dropout masks and accumulation must all be the same."""
    settings = {"gradient_accumulation_steps": 2, "gradient_checkpointing": checkpointing}
    plain, sam = (load(llama_folder, dropout=0.3) for _ in range(2))
    log = train(plain, make_encoded(plain, 10), **settings)
    assert train(sam, make_encoded(sam, 10), sam_of(1e-30), **settings) == log
    assert sam.adapter_sha256() == plain.adapter_sha256()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.slow
def test_sam_trains_a_fresh_adapter(adaptive: bool, llama_folder: Path, train: Train) -> None:
    """B is 0 there, so that A has no gradient, and ASAM's first step no direction to ascend in."""
    model = load(llama_folder, trained=False)
    items = make_encoded(model, 8)
    train(model, items, sam_of(0.02, adaptive), num_epochs=6, learning_rate=3e-2)
    before, after = (float(score(m, items, 8).surface("loss")) for m in (load(llama_folder, trained=False), model))
    assert after < 0.8 * before


def test_ascended_weights_come_back_to_the_bit() -> None:
    parameters = [torch.randn(3, 4, requires_grad=True), torch.randn(5, requires_grad=True), torch.randn(2)]
    kept = [p.detach().clone() for p in parameters]
    for p in parameters[:2]:
        p.grad = torch.randn_like(p)

    def interrupted() -> None:
        with SharpnessAware(0.3).ascended(parameters):
            moved = torch.cat([(p - k).detach().flatten() for p, k in zip(parameters, kept, strict=True)])
            assert float(moved.norm()) == pytest.approx(0.3, rel=1e-5)
            assert torch.equal(parameters[2], kept[2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(p, k) for p, k in zip(parameters, kept, strict=True))


def test_a_radius_that_leads_to_no_number_is_told(llama_folder: Path, train: Train) -> None:
    model = load(llama_folder)
    before = adapter_of(model)
    with pytest.raises(UserError, match=r"became nan; lower interventions\.sam_rho \(was 1e\+30\)"):
        train(model, make_encoded(model, 8), sam_of(1e30))
    assert torch.equal(adapter_of(model), before)
    assert not model.peft_model.training


def test_a_learning_rate_that_leads_to_no_number_is_still_told(llama_folder: Path, train: Train) -> None:
    model = load(llama_folder)
    settings = {"optimizer": "sgd", "learning_rate": 1e30, "lr_scheduler": "constant", "max_grad_norm": 0.0}
    with pytest.raises(UserError, match=r"training loss became nan at step 2; lower training\.learning_rate"):
        train(model, make_encoded(model, 8), sam_of(0.05), **settings)


@pytest.mark.parametrize(("on", "tasks"), [("first", [True, False, False]), ("all", [True, True, True])])
def test_sam_is_for_all_tasks_or_for_the_first(on: Any, tasks: list[bool], llama_folder: Path) -> None:
    model = load(llama_folder)
    earlier = [EncodedTask(f"task {k}", tuple(make_encoded(model, 4)), ()) for k in (1, 2)]
    settings = InterventionsConfig(sam_rho=0.1, sam_adaptive=True, sam_on=on)
    found = [one(Sam, intervene(settings, model, earlier[:k], 0)) for k in range(3)]
    assert [method is not None for method in found] == tasks
    assert all(m is None or (m.options.rho, m.options.adaptive) == (0.1, True) for m in found)


def test_what_sam_ascends_depends_on_the_scale_of_the_factors_and_asam_does_not(llama_folder: Path) -> None:
    """delta W at the ascended point, for one function written with B x 4 and A / 4."""

    def ascended(adaptive: bool, factor: float) -> torch.Tensor:
        model = load(llama_folder)
        model.lora.rescale(factor)
        plain_losses(model, make_encoded(model, 4)).mean().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad(), SharpnessAware(0.1, adaptive).ascended(trained_parameters(model)):
            return torch.cat([(p.B @ p.A).flatten() for p in model.adapter_factors().values()])

    torch.testing.assert_close(ascended(True, 1.0), ascended(True, 4.0), rtol=1e-4, atol=1e-5)
    assert float((ascended(False, 1.0) - ascended(False, 4.0)).norm()) > 0.1 * float(ascended(False, 1.0).norm())


# --- the anchor ---------------------------------------------------------------------------------------------------------------


def random_update(seed: int, scale: float = 1.0) -> WeightUpdate:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        f"module {n}": Factors(draw(rows, 3), draw(3, columns)) for n, (rows, columns) in enumerate([(7, 5), (4, 9)])
    }


def dense(update: WeightUpdate) -> torch.Tensor:
    return torch.cat([(pair.B @ pair.A).flatten() for pair in update.values()])


def leaves(update: WeightUpdate) -> list[torch.Tensor]:
    return [tensor for pair in update.values() for tensor in (pair.B, pair.A)]


def with_gradients(update: WeightUpdate, dtype: torch.dtype = torch.float64) -> WeightUpdate:
    return {name: Factors(*(t.to(dtype).requires_grad_() for t in (p.B, p.A))) for name, p in update.items()}


def test_the_anchor_s_value_and_gradient_are_those_of_dense_matrices() -> None:
    start, here = random_update(0), with_gradients(random_update(1))
    penalty = anchor_at(0.7, start).penalty_at(here)
    expected = 0.35 * (dense(here) - dense(start)).square().sum()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients, wanted = (torch.autograd.grad(value, leaves(here)) for value in (penalty, expected))
    torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-10)


def test_the_anchor_is_accurate_in_single_precision_close_to_its_start() -> None:
    """|D| is 1e-6 of |delta W|: squared norms subtracted afterwards would leave nothing but rounding."""
    start = {name: Factors(p.B.float().double(), p.A.float().double()) for name, p in random_update(0).items()}
    noise = random_update(1, scale=1e-6)
    moved = {n: Factors((p.B + noise[n].B).float(), (p.A + noise[n].A).float()) for n, p in start.items()}
    single = anchor_at(2.0, {n: Factors(p.B.float(), p.A.float()) for n, p in start.items()})
    here, exact = with_gradients(moved, torch.float32), with_gradients(moved)
    expected = (dense(exact) - dense(start)).square().sum()
    assert single.penalty_at(here).item() == pytest.approx(expected.item(), rel=1e-4)
    found, wanted = (torch.autograd.grad(v, leaves(u)) for v, u in ((single.penalty_at(here), here), (expected, exact)))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-4 * float(other.abs().max()))


def test_the_anchor_does_not_depend_on_how_either_update_is_written() -> None:
    start, here = random_update(0), random_update(1)
    expected = float(anchor_at(1.0, start).penalty_at(here))
    for seed in range(3):
        assert float(anchor_at(1.0, start).penalty_at(regauged(here, seed))) == pytest.approx(expected, rel=1e-9)
        assert float(anchor_at(1.0, regauged(start, seed)).penalty_at(here)) == pytest.approx(expected, rel=1e-9)
    assert float(anchor_at(1.0, start).penalty_at(regauged(start, 1))) == pytest.approx(0, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulation"), BATCHES)
def test_the_anchor_in_trainer_is_counted_once_per_step(
    batch_size: int, accumulation: int, any_folder: Path, train: Train
) -> None:
    model = load(any_folder, use_rslora=True)
    items = make_encoded(model, 16, [4, 2, 5])
    anchor = anchor_at(0.3, {name: Factors(pair.B * 0.5, pair.A) for name, pair in model.adapter_factors().items()})
    difference = dense(model.lora.live()) - dense(anchor.start)
    assert float(difference.detach().norm()) > 0.5
    loss = plain_losses(model, items).mean() + 0.15 * difference.square().sum()
    gradients = torch.autograd.grad(loss, trained_parameters(model))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    (entry,) = train(
        model, items, Methods((anchor,)), batch_size=batch_size, gradient_accumulation_steps=accumulation,
        num_epochs=1, max_grad_norm=1e9,
    )  # fmt: skip
    assert entry.loss == pytest.approx(loss.item(), rel=1e-5)
    assert entry.grad_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.slow
def test_an_anchor_has_no_part_in_the_first_step_and_holds_afterwards(llama_folder: Path, train: Train) -> None:
    """Its strength bounds how far delta W goes, and the record says how far that was."""
    distances, first = [], []
    for strength in (0.01, 1.0, 100.0):
        model = load(llama_folder)
        earlier = [EncodedTask("trees", tuple(make_encoded(model, 4)), ())]
        assert intervene(InterventionsConfig(anchor=strength), model, [], 0) == Methods()
        start = model.adapter_factors()
        found = intervene(InterventionsConfig(anchor=strength), model, earlier, 0)
        log = train(model, make_encoded(model, 8), found, num_epochs=4)
        first.append((log[0].loss, log[0].grad_norm))
        record = found.record(model).anchor
        assert record is not None
        difference = dense(WeightUpdate.combine([(1.0, model.adapter_factors()), (-1.0, start)]))
        assert record.strength == strength
        assert record.distance == pytest.approx(float(difference.norm()), rel=1e-4)
        assert record.penalty == pytest.approx(strength / 2 * record.distance**2)
        distances.append(record.distance)
    assert len(set(first)) == 1
    assert all(far > 1.5 * near for far, near in pairwise(distances))


# --- the rescaling that changes no function -----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [8.0, 0.25, 3.0])
def test_rescaling_changes_neither_delta_w_nor_a_logit(factor: float, any_folder: Path) -> None:
    """To the bit for powers of two, to rounding otherwise."""
    model = load(any_folder)
    items = make_encoded(model, 6)
    before, logits = model.adapter_factors(), score(model, items, 3).letter_logits
    written = model.adapter_state()
    model.lora.rescale(factor)
    after = model.adapter_factors()
    for name, pair in before.items():
        torch.testing.assert_close(after[name].B @ after[name].A, pair.B @ pair.A, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after[name].B, factor * pair.B)
    exact = math.log2(factor).is_integer()
    if exact:
        assert torch.equal(dense(after), dense(before))
    torch.testing.assert_close(
        torch.as_tensor(score(model, items, 3).letter_logits),
        torch.as_tensor(logits),
        rtol=0,
        atol=0 if exact else 1e-5,
    )
    assert all(not torch.equal(tensor, written[name]) for name, tensor in model.adapter_state().items())


def test_rescaling_changes_raw_sharpness_and_leaves_the_landscape_alone(llama_folder: Path) -> None:
    """g_A becomes c g_A and g_B g_B / c, so a ball around the raw factors is another; canonical coordinates are the same."""

    def loss(module: Any, batch: Any, model: LanguageModel) -> tuple[torch.Tensor, int]:
        return answer_losses(model, batch, packed=False).sum(), len(batch)

    def measured(factor: float) -> tuple[dict[str, torch.Tensor], float, float]:
        model = load(llama_folder)
        items = make_encoded(model, 6)
        model.lora.rescale(factor)
        canonical = lf.flatness(model.peft_model, partial(loss, model=model), [items], directions=3, distance=0.3)
        centre = plain_losses(model, items).mean()
        centre.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad(), SharpnessAware(0.02).ascended(trained_parameters(model)):
            rise = plain_losses(model, items).mean() - centre
        parameters = model.peft_model.named_parameters()
        return {n: p.grad for n, p in parameters if p.grad is not None}, canonical.mean_rise, float(rise)

    (before, flat, sharp), (after, still_flat, not_as_sharp) = measured(1.0), measured(5.0)
    for name, gradient in before.items():
        expected = gradient * 5 if "lora_A" in name else gradient / 5
        torch.testing.assert_close(after[name], expected, rtol=1e-3, atol=1e-5)
    assert still_flat == pytest.approx(flat, rel=1e-4)
    assert not_as_sharp > 1.5 * sharp > 0


def test_every_task_but_the_first_is_rescaled_before_it_is_learnt(llama_folder: Path) -> None:
    model = load(llama_folder)
    before = model.adapter_sha256()
    settings = InterventionsConfig(rescale=2.0, anchor=1.0)
    assert intervene(settings, model, [], 0) == Methods()
    assert model.adapter_sha256() == before
    found = intervene(settings, model, [EncodedTask("trees", (), ())], 0)
    assert model.adapter_sha256() != before
    record = found.record(model)
    assert record.anchor is not None
    assert (record.rescale, record.anchor.distance) == (2, 0)


# --- replay -------------------------------------------------------------------------------------------------------------------


def test_replayed_items_are_a_fixed_subset_of_what_was_trained(llama_folder: Path) -> None:
    model = load(llama_folder)
    tasks = [EncodedTask(name, tuple(make_encoded(model, 12, seed=n)), tuple(make_encoded(model, 3, seed=9)))
             for n, name in enumerate(("oaks", "elms"))]  # fmt: skip
    ids = [item.item.id for item in replay_subset(tasks[0], 5, seed=0)]
    assert len(set(ids)) == 5
    assert set(ids) < {item.item.id for item in tasks[0].train}
    assert ids == [item.item.id for item in tasks[0].train if item.item.id in ids]
    assert replay_subset(tasks[0], 5, seed=0) == replay_subset(tasks[0], 5, seed=0)
    assert len({tuple(replay_subset(tasks[0], 5, seed)) for seed in range(4)}) > 2
    assert replay_subset(tasks[0], 99, seed=0) == tasks[0].train
    settings = InterventionsConfig(replay_items=5)
    methods = [intervene(settings, model, tasks[:k], 0) for k in (1, 2)]
    once, later = (one(Replay, found) for found in methods)
    assert intervene(settings, model, [], 0) == Methods()
    assert list(later.replayed) == ["oaks", "elms"]
    assert later.replayed["oaks"] == once.replayed["oaks"]
    assert methods[1].items() == [*later.replayed["oaks"], *later.replayed["elms"]]
    assert methods[1].record(model).replayed["oaks"] == tuple(ids)


# --- whole phases -------------------------------------------------------------------------------------------------------------


Outcome = tuple[float, float, dict[str, Any]]


@pytest.fixture(scope="module")
def learn_second(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Options to: rise of task 1's loss while task 2 is learnt, task 2's loss in the end, and the phase's record."""

    def session(folder: Path, *options: str) -> Session:
        return Session(parse_config("smoke", options), folder, Silent())

    def loss(session: Session, task: int) -> float:
        return float(score(session.model, session.encoded[task].train, 48).surface("loss"))

    first = session(tmp_path_factory.mktemp("first"))
    train_phase(first, 1)

    def result(*options: str) -> Outcome:
        second = session(tmp_path_factory.mktemp("second"), *options)
        shutil.copytree(first.checkpoint_folder(1), second.checkpoint_folder(1))
        second.at(1)
        before = loss(second, 0)
        phase = train_phase(second, 2)
        return loss(second, 0) - before, loss(second, 1), phase

    return result


@pytest.mark.slow
def test_replay_and_anchor_reduce_forgetting(learn_second: Callable[..., Outcome]) -> None:
    """Both learn the second task all the same (ln 4 = 1.39 nats is a guess)."""
    forgotten, learnt, plain = learn_second()
    assert forgotten > 3
    assert learnt < 0.5
    kept, learnt_too, replayed = learn_second("--interventions.replay_items=16")
    assert kept < forgotten / 4
    assert learnt_too < 0.5
    assert (plain.optimizer_steps, replayed.optimizer_steps) == (12 * 3, 12 * 4)
    assert len(replayed.interventions.replayed["synthetic_1"]) == 16
    held, learnt_as_well, anchored = learn_second("--interventions.anchor=0.3")
    assert held < 0.85 * forgotten
    assert learnt_as_well < 0.5
    assert anchored.interventions.anchor is not None
    assert 0 < anchored.interventions.anchor.penalty < 1


@pytest.mark.slow
def test_a_phase_with_every_intervention_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The anchor and the rescaling belong to where the phase began, not to where it was resumed."""
    config = parse_config(
        "smoke",
        ["--interventions.sam_rho=0.02", "--interventions.sam_adaptive=true", "--interventions.replay_items=8",
         "--interventions.anchor=0.01", "--interventions.rescale=3", "--lora.dropout=0.2", "--training.num_epochs=3",
         "--training.gradient_accumulation_steps=2"],
    )  # fmt: skip
    folders = [tmp_path / name for name in ("whole", "killed")]
    folders[0].mkdir()
    train_phase(Session(config, folders[0], Silent()), 1)
    shutil.copytree(folders[0], folders[1])
    expected = train_phase(Session(config, folders[0], Silent()), 2)
    assert expected.interventions.rescale == 3
    assert expected.interventions.anchor is not None
    assert expected.interventions.anchor.distance > 0.1
    steps = expected.optimizer_steps
    assert steps == 3 * 2  # 56 items in batches of 16, two to a step
    with pytest.raises(Killed):
        train_phase(Session(config, folders[1], KillingProgress(steps - 1)), 2)
    assert train_phase(Session(config, folders[1], Silent()), 2) == expected
