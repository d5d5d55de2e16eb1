"""The open list of methods: names and options, another package's method, and a killed training of every method."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from killing import Killed, KillingProgress
from peft import PeftModel, set_peft_model_state_dict
from tiny_models import fill_adapter

from llm_forgetting.config.files import parse_config
from llm_forgetting.config.methods import method_names, method_of
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.cost.work import TaskSize, work_of
from llm_forgetting.experiment.phases import train as train_phase
from llm_forgetting.experiment.phases_setup import set_up
from llm_forgetting.experiment.session import Session
from llm_forgetting.files import from_plain, to_plain
from llm_forgetting.landscape.factors import WeightUpdate
from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.merging import Combination
from llm_forgetting.models.adapter.saved_adapter import read_weights
from llm_forgetting.models.language.backbones import load_backbone
from llm_forgetting.models.language.batches import collate
from llm_forgetting.progress import Silent
from llm_forgetting.results import InterventionRecord, TrainingRecord
from llm_forgetting.training.method import Start
from llm_forgetting.training.methods.new_adapter import NewAdapter, NewAdapterOptions

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    "--training.num_epochs=2", "--training.batch_size=4", "--data.train_items=8", "--data.test_items=2",
    "--landscape.num_items=2", "--lora.rank=2",
]  # fmt: skip


def configured(*options: str) -> ExperimentConfig:
    return parse_config("smoke", [*SMALL, *options])


# --- names and options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--training.methods.samm.rho=1"], "is none of them; did you mean sam?"),
        (["--training.methods.sam.radius=1"], "the options of sam are rho, adaptive, tasks"),
        (["--training.methods.sam.rho=-1"], "training.methods.sam.rho must be greater than 0, was -1.0"),
        (["--training.methods.sam.rho=wide"], "training.methods.sam: rho: Input should be a valid number"),
        (["--training.methods.sam.tasks=last"], "Input should be 'first' or 'all' (is 'last')"),
        (["--training.methods.sam=3"], "must hold options such as {strength: 10}, was 3"),
        (["--training.methods.freeze.layers=[0, 1, a]"], "training.methods.freeze: layers.2: Input should be a valid integer"),
        (["--training.methods=[sam]"], "training.methods must be a mapping such as {name: value}"),
        (["--training.methods={sam: 3}"], "must hold options such as {strength: 10}, was 3"),
        (["--training.methods.a.b.c=3"], "must be --training.methods.NAME.OPTION VALUE"),
        (["--training.methods.sam.rho=1", "--interventions.sam_rho=1"], "ask for the same method"),
        (["--training.methods.replay=null"], "must say what is replayed"),
    ],
)  # fmt: skip
def test_what_is_unknown_is_told_in_one_line(options: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        configured(*options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_that_the_model_has_not_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = configured("--training.methods.freeze.layers=[99]", f"--output.folder={tmp_path}")
    with pytest.raises(UserError, match=r"layers=\[99\] and modules=\[\] name none of"):
        set_up(Session(config, tmp_path, Silent()), RunFolder(tmp_path))
    assert not list((tmp_path / "phases").glob("train*"))


def test_an_option_on_the_command_line_leaves_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("training: {methods: {sam: {rho: 0.3, adaptive: true}, replay: {text: 2}}}")
    found = parse_config(
        str(file), ["--training.methods.sam.rho=1", "--training.methods.anchor", "null"]
    ).training.methods
    assert found == {"sam": {"rho": 1, "adaptive": True}, "replay": {"text": 2}, "anchor": {}}


def test_the_fingerprint_names_methods_and_options_and_keeps_that_of_older_runs() -> None:
    plain, other, same, more = (
        configured(*[f"--training.methods={{sam: {{rho: {rho}}}}}"] if rho else []).fingerprint
        for rho in ("", "1", "1.0", "2")
    )
    assert len({plain, other, more}) == 3
    assert other == same
    assert plain == configured("--training.methods={}").fingerprint


# --- another package's method -------------------------------------------------------------------------------------------------

FOREIGN = '''
from dataclasses import dataclass
from llm_forgetting.training.method import Method


@dataclass(frozen=True)
class Pull:
    strength: float = 1.0


class Shrink(Method[Pull]):
    """Half the squared norm of all factors."""

    Options = Pull

    def penalty(self, model, items):
        return self.options.strength / 2 * sum(p.square().sum() for p in model.peft_model.parameters() if p.requires_grad)

    def save(self, folder):
        (folder / "strength.txt").write_text(str(self.options.strength))

    def measured(self, model):
        return {"strength": self.options.strength}
'''


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a method, as an installer leaves it."""
    folder = tmp_path / "site"
    (folder / "foreign-1.0.dist-info").mkdir(parents=True)
    (folder / "foreign_methods.py").write_text(FOREIGN)
    (folder / "foreign-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (folder / "foreign-1.0.dist-info/entry_points.txt").write_text(
        "[llm_forgetting.methods]\nshrink = foreign_methods:Shrink\nbroken = foreign_methods:Absent\nno_method = pathlib:Path\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("foreign_methods", None)


# --- a killed training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first task has been learnt without a method."""
    folder = tmp_path_factory.mktemp("first")
    train_phase(Session(configured(), folder, Silent()), 1)
    return folder


METHODS = {
    "replay": "{ratio: 0.5, text: 2}",
    "ewc": "{strength: 100, fisher: kronecker, items: 4}",
    "o_lora": "{strength: 0.5, norm: 0.01}",
    "new_adapter": "{merge: ties}",
    "freeze": "{layers: [0]}",
    "lora_plus": "{ratio: 4, tasks: later}",
    "learning_rate": "{factor: 0.5}",
    "interpolate": "{share: 0.5, rank: 2}",
    "lines": "{first: 0.1}",
    "kl": "{source: generated, tokens: 5, direction: reverse}",
}


class Learnt:
    """Second tasks learnt after one first task, each method's once."""

    def __init__(self, first: Path, folder: Path) -> None:
        self._first, self._folder = first, folder
        self._known: dict[str, tuple[Session, TrainingRecord]] = {}

    def session(self, kind: str, *options: str, progress: Silent | None = None) -> Session:
        """In a folder of its own with the first task's checkpoint."""
        folder = self._folder / kind
        if not folder.exists():
            shutil.copytree(self._first, folder)
        return Session(configured("--lora.dropout=0.1", *options), folder, progress or Silent())

    def with_method(self, name: str) -> tuple[Session, TrainingRecord]:
        """The session after its second task, and the task's record; `plain` is without a method."""
        if name not in self._known:
            session = self.session(name, *options_of(name))
            self._known[name] = session, train_phase(session, 2)
        return self._known[name]

    def updates(self, name: str) -> tuple[WeightUpdate, WeightUpdate]:
        """delta W after the first and the second task, as they are read back from their checkpoints."""
        updates = self.with_method(name)[0].updates()
        return updates["after_task1"], updates["after_task2"]


def options_of(name: str) -> list[str]:
    return [f"--training.methods.{name}={METHODS[name]}"] if name in METHODS else []


@pytest.fixture(scope="module")
def learnt(first_task: Path, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    return Learnt(first_task, tmp_path_factory.mktemp("learnt"))


@pytest.mark.usefixtures("foreign")
def test_another_package_adds_a_method_without_touching_ours(learnt: Learnt) -> None:
    assert {"shrink", "sam"} <= set(method_names())
    assert not method_of("shrink", {}).acts(1)
    session = learnt.session("shrink", "--training.methods.shrink.strength=0.5")
    record = train_phase(session, 2).interventions.methods
    assert record is not None
    assert record["shrink"].options == {"strength": 0.5} == record["shrink"].measured
    assert (session.checkpoint_folder(2) / "methods/shrink/strength.txt").read_text() == "0.5"
    assert not (session.checkpoint_folder(1) / "methods").exists()
    states = (session.model.adapter_state(), learnt.with_method("plain")[0].model.adapter_state())
    norms = [sum(float(weight.square().sum()) for weight in state.values()) for state in states]
    assert norms[0] < 0.9 * norms[1]
    for name, said in (
        ("broken", "cannot be loaded from foreign_methods:Absent: AttributeError"),
        ("no_method", "is none"),
    ):
        with pytest.raises(UserError, match=said):
            method_of(name, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_training_goes_on_to_the_same_adapter(name: str, learnt: Learnt) -> None:
    """And the method changes what is learnt: the adapter is not that of plain training."""
    _, whole = learnt.with_method(name)
    with pytest.raises(Killed):
        train_phase(
            learnt.session(f"{name} killed", *options_of(name), progress=KillingProgress(whole.optimizer_steps - 1)), 2
        )
    assert train_phase(learnt.session(f"{name} killed", *options_of(name)), 2) == whole
    _, plain = learnt.with_method("plain")
    assert plain.adapter_sha256 != whole.adapter_sha256
    assert plain.interventions != whole.interventions


def test_interventions_are_methods_by_another_name(learnt: Learnt) -> None:
    """One training with two of them, asked for in both ways."""
    ways = (
        ["--interventions.anchor=0.3", "--interventions.replay_items=2"],
        ["--training.methods.anchor.strength=0.3", "--training.methods.replay.items=2"],
    )
    one, other = (train_phase(learnt.session(f"way {n}", *way), 2) for n, way in enumerate(ways))
    assert one == other
    assert one.interventions.methods is None
    assert one.interventions.anchor is not None
    older = {"sam": None, "replayed": {}, "anchor": None, "rescale": 1.0}
    assert to_plain(from_plain(InterventionRecord, older)) == older  # a run without methods reads and writes as before


# --- what each leaves behind --------------------------------------------------------------------------------------------------


def dense(pair: Factors) -> torch.Tensor:
    return pair.B @ pair.A


def test_interpolation_ends_between_and_is_cut_to_a_rank(learnt: Learnt) -> None:
    """Half of both, of which the two largest singular values are kept (Eckart & Young)."""
    (before, found), (_, plain) = learnt.updates("interpolate"), learnt.updates("plain")
    for name, pair in found.items():
        U, S, Vh = torch.linalg.svd((dense(before[name]) + dense(plain[name])) / 2)
        torch.testing.assert_close(dense(pair), (U[:, :2] * S[:2]) @ Vh[:2], rtol=1e-4, atol=1e-6)
    record = learnt.with_method("interpolate")[1].interventions.methods
    assert record is not None
    assert 0 < record["interpolate"].measured["truncation_error"] < 1
    assert record["interpolate"].measured["rank"] == 2


def test_lines_scales_a_task_s_update_by_depth(learnt: Learnt) -> None:
    """0.1 in the first of two layers, 1 in the last; exact, so ranks add up."""
    (before, found), (_, plain) = learnt.updates("lines"), learnt.updates("plain")
    for name, pair in found.items():
        share = 0.1 if ".0." in name else 1.0
        expected = dense(before[name]) + share * (dense(plain[name]) - dense(before[name]))
        torch.testing.assert_close(dense(pair), expected, rtol=1e-4, atol=1e-6)
        assert len(pair.A) == 4


def test_frozen_layers_stay_and_others_move(learnt: Learnt) -> None:
    before, found = learnt.updates("freeze")
    moved = {name: not torch.equal(dense(pair), dense(before[name])) for name, pair in found.items()}
    assert {name: moved[name] for name in moved} == {name: ".1." in name for name in moved}
    session, _ = learnt.with_method("freeze")
    assert all(p.requires_grad for n, p in session.model.peft_model.named_parameters() if "lora" in n)


def test_another_learning_rate_is_that_of_the_configuration(learnt: Learnt) -> None:
    rate = configured().training.learning_rate
    session = learnt.session("half the rate", f"--training.learning_rate={0.5 * rate!r}")
    assert train_phase(session, 2).adapter_sha256 == learnt.with_method("learning_rate")[1].adapter_sha256


def test_lora_plus_moves_b_faster(learnt: Learnt) -> None:
    """AdamW's first step moves every weight by its learning rate, whatever its gradient."""
    session = learnt.session("one step", "--training.methods.lora_plus.ratio=4", "--training.batch_size=8",
                             "--training.num_epochs=1", "--lora.dropout=0", "--training.max_grad_norm=0")  # fmt: skip
    before = session.at(1).adapter_state()
    train_phase(session, 2)
    rate = session.config.training.learning_rate
    for name, weight in session.model.adapter_state().items():
        expected = rate * (4 if "lora_B" in name else 1)
        assert float((weight - before[name]).abs().median()) == pytest.approx(expected, rel=1e-2)


def test_o_lora_keeps_earlier_adapters_to_the_bit_and_peft_reads_what_is_saved(learnt: Learnt) -> None:
    """The saved adapter is that of the first task beside a new one, in a rank that has grown."""
    session, record = learnt.with_method("o_lora")
    first, second = (read_weights(session.checkpoint_folder(k)) for k in (1, 2))
    for name, weight in first.items():
        kept = second[name][:2] if "lora_A" in name else second[name][:, :2]
        assert torch.equal(kept, weight)
        assert max(second[name].shape) > max(weight.shape) or second[name].shape != weight.shape
    overlap = sum(float((second[name][:2] @ second[name][2:].T).abs().sum()) for name in second if "lora_A" in name)
    assert record.interventions.methods is not None
    assert record.interventions.methods["o_lora"].measured == {"overlap": pytest.approx(overlap, rel=1e-5), "rank": 4}
    backbone, _ = load_backbone(session.config.model, lambda line: None)
    read = PeftModel.from_pretrained(backbone, session.checkpoint_folder(2))
    items = session.encoded[1].test
    batch = collate(items, session.model.pad_id)
    with torch.no_grad():
        theirs = read(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, -1]
        torch.testing.assert_close(session.at(2).answer_logits(batch), theirs, rtol=1e-4, atol=1e-5)
    assert session.at(0).adapter_state()[name].shape == weight.shape  # and the live adapter shrinks again


@pytest.mark.filterwarnings("ignore:The density 1.0 is greater than or equal to 1")
@pytest.mark.parametrize(
    ("merge", "density"), [("ties", 0.5), ("linear", 0.5), ("svd", 0.5), ("cat", 0.5), ("dare_linear", 1.0)]
)
def test_merged_adapters_are_those_of_peft(learnt: Learnt, merge: Combination, density: float) -> None:
    """Two adapters of one PEFT model, the second one trained on the base model, and its `add_weighted_adapter`.

    What `dare_linear` drops is drawn; at density 1 it drops nothing.
    """
    session, _ = learnt.with_method("new_adapter")
    method = NewAdapter(NewAdapterOptions(merge, density=density))
    method.begin(Start(session.at(1), session.encoded[1], number=2, last=False))
    fresh = session.model.adapter_factors()
    assert not any(pair.B.any() for pair in fresh.values())
    fill_adapter(session.model.peft_model, seed=5)
    own = session.model.adapter_state()
    first = read_weights(session.checkpoint_folder(1))
    method.end(session.model)
    session.mark_checkpoint(None)
    backbone, _ = load_backbone(session.config.model, lambda line: None)
    theirs = PeftModel.from_pretrained(backbone, session.checkpoint_folder(1), adapter_name="one")
    theirs.load_adapter(str(session.checkpoint_folder(1)), adapter_name="two")
    set_peft_model_state_dict(theirs, own, adapter_name="two")
    set_peft_model_state_dict(theirs, first, adapter_name="one")
    options = {} if merge in ("linear", "svd", "cat") else {"density": density}
    theirs.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type=merge, **options)
    compared = 0
    for name, layer in theirs.base_model.model.named_modules():
        if hasattr(layer, "lora_A") and "both" in layer.lora_A:
            expected = layer.scaling["both"] * layer.lora_B["both"].weight @ layer.lora_A["both"].weight
            found = session.model.adapter_factors()[name]
            torch.testing.assert_close(dense(found), expected.detach(), rtol=1e-4, atol=1e-6)
            compared += 1
    assert compared == len(session.model.adapter_factors())


def test_a_dry_run_counts_what_methods_cost() -> None:
    sizes = [TaskSize(name, 8, 2, 10.0) for name in ("one", "two")]
    config = configured("--training.methods={replay: {ratio: 0.5, text: 2}, sam: {rho: 0.1, tasks: first}}")
    first, second = work_of(config, sizes)[:2]
    assert (first.passes, second.passes) == (2 * 2 * 8, 2 * (8 + 4 + 2))
    assert "SAM" in first.label
    assert "SAM" not in second.label
