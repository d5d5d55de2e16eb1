"""The open list of methods: names and options, another package's method, and a killed training of every method."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_forgetting.config.files import parse_config
from llm_forgetting.config.methods import method_names, method_of
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.cost.work import TaskSize, work_of
from llm_forgetting.experiment.phases import train as train_phase
from llm_forgetting.experiment.session import Session
from llm_forgetting.progress import Advance, Silent
from llm_forgetting.results import TrainingRecord

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


@pytest.mark.usefixtures("foreign")
def test_another_package_adds_a_method_without_touching_ours(tmp_path: Path) -> None:
    assert {"shrink", "sam"} <= set(method_names())
    session = Session(configured("--training.methods.shrink.strength=0.5"), tmp_path, Silent())
    plain = Session(configured(), tmp_path / "plain", Silent())
    (tmp_path / "plain").mkdir()
    train_phase(session, 1)
    train_phase(plain, 1)
    assert session.model.adapter_sha256() == plain.model.adapter_sha256()  # it acts from the second task on
    record = train_phase(session, 2).interventions.methods
    assert record is not None
    assert record["shrink"].options == {"strength": 0.5} == record["shrink"].measured
    assert (session.checkpoint_folder(2) / "methods/shrink/strength.txt").read_text() == "0.5"
    assert not (session.checkpoint_folder(1) / "methods").exists()
    train_phase(plain, 2)
    norms = [
        sum(float(p.detach().square().sum()) for p in s.model.peft_model.parameters() if p.requires_grad)
        for s in (session, plain)
    ]
    assert norms[0] < 0.9 * norms[1]
    for name, said in (
        ("broken", "cannot be loaded from foreign_methods:Absent: AttributeError"),
        ("no_method", "is none"),
    ):
        with pytest.raises(UserError, match=said):
            method_of(name, {})


# --- a killed training --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a killed process is to the code that it runs."""


class KillingProgress(Silent):
    """Ends the training at an optimiser step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        def advance(steps: int, text: str) -> None:
            self.left -= steps
            if self.left == 0:
                raise Killed

        yield advance


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


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_training_goes_on_to_the_same_adapter(name: str, first_task: Path, tmp_path: Path) -> None:
    """And the method changes what is learnt: the adapter is not that of plain training."""
    config = configured(f"--training.methods.{name}={METHODS[name]}", "--lora.dropout=0.1")
    records: list[TrainingRecord] = []
    folders = [tmp_path / kind for kind in ("whole", "killed", "plain")]
    for folder in folders:
        shutil.copytree(first_task, folder)
    records.append(train_phase(Session(config, folders[0], Silent()), 2))
    with pytest.raises(Killed):
        train_phase(Session(config, folders[1], KillingProgress(records[0].optimizer_steps - 1)), 2)
    records.append(train_phase(Session(config, folders[1], Silent()), 2))
    assert records[0] == records[1]
    plain = train_phase(Session(configured("--lora.dropout=0.1"), folders[2], Silent()), 2)
    assert plain.adapter_sha256 != records[0].adapter_sha256
    assert records[0].interventions != plain.interventions


def test_a_dry_run_counts_what_methods_cost() -> None:
    sizes = [TaskSize(name, 8, 2, 10.0) for name in ("one", "two")]
    config = configured("--training.methods={replay: {ratio: 0.5, text: 2}, sam: {rho: 0.1, tasks: first}}")
    first, second = work_of(config, sizes)[:2]
    assert (first.passes, second.passes) == (2 * 2 * 8, 2 * (8 + 4 + 2))
    assert "SAM" in first.label
    assert "SAM" not in second.label
