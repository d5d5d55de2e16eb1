"""`llm-forgetting forecast A B` and `evaluate A B`: any two checkpoints of one backbone, against runs, single evaluations and
plain PEFT.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from runs import TINY, Shell
from test_html import Elements, complaints
from tiny_models import load, make_items, plain_losses
from transformers import AutoModelForCausalLM

from llm_forgetting.arrays import standard_error
from llm_forgetting.cli.main import main
from llm_forgetting.config.paths import leaves
from llm_forgetting.forgetting.intervals import PairedProportionChange, mcnemar_exact
from llm_forgetting.forgetting.paired_evaluation import task_changes
from llm_forgetting.forgetting.records import ItemRecord
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.results import read_evaluation, read_forecast, read_items, read_results

pytestmark = pytest.mark.process  # what names the machine asks `uname`
TASKS = ("--task", "synthetic_1", "--task", "synthetic_2")
OF_TINY = [
    word
    for path, value in leaves(TINY)
    if path.startswith("landscape.") or path in ("data.source", "data.train_items", "data.test_items")
    for word in (f"--{path}", str(value))
]


@pytest.fixture(scope="module")
def cached(shell: Shell) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_FORGETTING_CACHE", str(shell.cache))
        yield


def made(kind: str, folder: Path, *arguments: object) -> Path:
    """The folder that a command makes in `folder`."""
    before = set(folder.glob(f"{kind}_*"))
    assert main([*map(str, arguments), "--output_dir", str(folder)]) == 0
    (path,) = set(folder.glob(f"{kind}_*")) - before
    return path


@pytest.fixture(scope="module")
def ends(tiny_run: Path) -> tuple[Path, Path]:
    return tiny_run / "checkpoint_after_task1", tiny_run / "checkpoint_after_task2"


# --- forecasts --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forecast(cached: None, ends: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("forecast", tmp_path_factory.mktemp("forecast"), "forecast", *ends, *TASKS, *OF_TINY)


def test_the_forecast_of_a_pair_is_that_of_the_run(forecast: Path, tiny_run: Path) -> None:
    (run,), pair = read_results(tiny_run).forecasts, read_forecast(forecast)
    theirs, ours = run.tasks["synthetic_1"]["train"], pair.tasks["synthetic_1"].forecast
    for name in ("items", "loss", "first_order", "curvature", "second_order", "observed"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert pair.update_norm == run.update_norm
    assert pair.tasks["synthetic_2"].divergence == run.divergence  # there on the items of the new task
    assert pair.norms["A"] == pytest.approx(read_results(tiny_run).landscapes["after_task1"].update_norm)


def test_the_observed_change_is_that_of_the_run_s_items(forecast: Path, tiny_run: Path) -> None:
    lines = [item for item in read_items(tiny_run) if isinstance(item, ItemRecord) and item.split == "train"]
    for task, pair in read_forecast(forecast).tasks.items():
        before, after = (
            {item.id: item.loss for item in lines if (item.checkpoint, item.task) == (checkpoint, task)}
            for checkpoint in ("after_task1", "after_task2")
        )
        d = np.array([after[name] - before[name] for name in pair.forecast.items])
        assert pair.change.value == pytest.approx(d.mean(), abs=1e-6)
        assert pair.change.value == pytest.approx(pair.forecast.observed, abs=1e-6)
        assert pair.change.stderr == pytest.approx(standard_error(d), abs=1e-6)
        assert pair.change.interval is None


def test_a_forecast_s_page_says_its_numbers(forecast: Path) -> None:
    text = Elements((forecast / "report.html").read_text(encoding="utf-8")).text
    pair = read_forecast(forecast).tasks["synthetic_1"]
    assert f"The loss of synthetic 1 ({pair.change.n} items) changes by" in text
    assert "llm-forgetting forecast" in text
    page = forecast / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(forecast)]) == 0
    assert page.read_bytes() == before


def test_a_forecast_goes_on_where_it_was_stopped(
    forecast: Path, ends: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(forecast, folder)
    (folder / "forecast.json").unlink()
    (folder / "phases" / "pair_forecast_task2.json").unlink()
    kept = (folder / "phases" / "pair_forecast_task1.json").stat().st_mtime_ns
    given = ["forecast", *map(str, ends), *TASKS, *OF_TINY, "--resume", str(folder)]
    assert main(given) == 0
    assert (folder / "phases" / "pair_forecast_task1.json").stat().st_mtime_ns == kept
    ours, theirs = (json.loads((path / "forecast.json").read_text()) for path in (folder, forecast))
    assert ours["tasks"] == theirs["tasks"]
    capsys.readouterr()
    assert "they differ" in complaints([*given, "--landscape.seed", "3"], capsys)
    assert "is not one" in complaints([*given[:-1], str(tmp_path / "nowhere")], capsys)


@pytest.fixture(scope="module")
def foreign(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two adapters of different ranks and scales on a tiny Llama, their plain PEFT models, and a file of questions."""
    folder = tmp_path_factory.mktemp("foreign")
    models = {"A": load(llama_folder, seed=1, rank=2, alpha=4.0), "B": load(llama_folder, seed=2, rank=3, alpha=9.0)}
    for name, model in models.items():
        (folder / name).mkdir()
        model.save(folder / name)
    rows = [{"question": item.question, "choices": item.choices, "answer": item.answer} for item in make_items(9)]
    (folder / "trees.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--task", "trees", "--data.source", "local", "--data.path", folder / "trees.jsonl")
    return {"folder": folder, "models": models, "data": data}


SIZES = ("--data.train_items", 6, "--data.test_items", 3, "--landscape.num_items", 6, "--landscape.self_test_items", 4)


@pytest.mark.parametrize("pair", [("A", "B"), ("base", "B"), ("B", "base")])
def test_other_ranks_and_the_bare_backbone_are_forecast_as_by_hand(
    foreign: dict[str, Any], llama_folder: Path, tmp_path: Path, pair: tuple[str, str]
) -> None:
    named = [word if word == "base" else foreign["folder"] / word for word in pair]
    found = read_forecast(made("forecast", tmp_path, "forecast", *named, *foreign["data"], *SIZES))
    task, model = found.tasks["trees"], foreign["models"]["A"]
    by_id = {str(n): item for n, item in enumerate(encode(model.tokenizer, make_items(9), {}, 512))}
    items = [by_id[name.rsplit("/", 1)[1]] for name in task.forecast.items]
    before, after = (merged_weights(None if name == "base" else foreign["models"][name], model) for name in pair)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder).double()

    @torch.no_grad()
    def loss(t: float) -> float:
        for name in before:
            plain.get_submodule(name).weight.copy_((1 - t) * before[name].double() + t * after[name].double())
        return float(plain_losses(SimpleNamespace(peft_model=plain), items).double().mean())  # type: ignore[arg-type]

    h = 0.003
    low, start, high = loss(-h), loss(0.0), loss(h)
    assert task.forecast.loss == pytest.approx(start, abs=1e-5)
    assert task.change.value == pytest.approx(loss(1.0) - start, abs=1e-5)
    assert task.forecast.first_order == pytest.approx((high - low) / (2 * h), rel=0.01, abs=2e-3)
    assert task.forecast.curvature == pytest.approx((high - 2 * start + low) / h**2, rel=0.05, abs=0.1)
    distance = sum(float((after[name] - before[name]).double().square().sum()) for name in before) ** 0.5
    assert found.update_norm == pytest.approx(distance, rel=1e-4)


def test_an_adapter_of_another_kind_is_one_of_a_pair(
    foreign: dict[str, Any], llama_folder: Path, tmp_path: Path
) -> None:
    """Plain LoRA to DoRA: losses of both are those of PEFT's own forward, |D| that of weights that PEFT merged."""
    backbone = AutoModelForCausalLM.from_pretrained(llama_folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dora = peft.get_peft_model(
            backbone, peft.LoraConfig(r=3, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
        ).eval()
        for name, parameter in dora.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.2)
    dora.save_pretrained(tmp_path / "dora")
    pair = foreign["folder"] / "A", tmp_path / "dora"
    found = read_forecast(made("forecast", tmp_path, "forecast", *pair, *foreign["data"], *SIZES))
    task, model = found.tasks["trees"], foreign["models"]["A"]
    by_id = {str(n): item for n, item in enumerate(encode(model.tokenizer, make_items(9), {}, 512))}
    items = [by_id[name.rsplit("/", 1)[1]] for name in task.forecast.items]
    theirs = SimpleNamespace(peft_model=dora)
    before, after = (plain_losses(each, items).mean().item() for each in (model, theirs))
    assert (task.forecast.loss, task.change.value) == pytest.approx((before, after - before), abs=1e-5)
    first, second = merged_weights(model, model), dora.merge_and_unload().state_dict()
    distance = sum(float((second[f"{name}.weight"] - first[name]).double().square().sum()) for name in first) ** 0.5
    assert found.update_norm == pytest.approx(distance, rel=1e-4)
    items_of_b = [
        line.loss for line in read_items(made("evaluation", tmp_path, "evaluate", *pair, *foreign["data"]))[9:]
    ]
    assert np.mean([items_of_b[int(name.rsplit("/", 1)[1])] for name in task.forecast.items]) == pytest.approx(
        after, abs=1e-5
    )


def test_an_adapter_of_another_scale_keeps_its_delta_w(llama_folder: Path, tmp_path: Path) -> None:
    """Of the same rank, so its weights fit: around it the landscape was that of another adapter, 2.25 times as small."""
    first, other = (load(llama_folder, seed=n, rank=2, alpha=alpha) for n, alpha in ((1, 4.0), (2, 9.0)))
    other.save(tmp_path)
    first.load_adapter_weights(tmp_path)
    for name, pair in other.adapter_factors().items():
        mine = first.adapter_factors()[name]
        torch.testing.assert_close(mine.B @ mine.A, pair.B @ pair.A)


def merged_weights(trained: Any, like: Any) -> dict[str, torch.Tensor]:
    """W + s B A of every adapted module, by PEFT's own numbers; W where nothing is trained."""
    return {
        name.removeprefix("base_model.model."): module.get_base_layer().weight.detach()
        + (
            0.0
            if trained is None
            else dict(trained.peft_model.named_modules())[name].get_delta_weight("default").detach()
        )
        for name, module in like.peft_model.named_modules()
        if hasattr(module, "get_base_layer")
    }


# --- evaluations ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(foreign: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pair = (foreign["folder"] / name for name in "AB")
    return made("evaluation", tmp_path_factory.mktemp("pair"), "evaluate", *pair, *foreign["data"])


def test_a_paired_evaluation_is_two_evaluations(foreign: dict[str, Any], evaluation: Path, tmp_path: Path) -> None:
    pair, lines = read_evaluation(evaluation), read_items(evaluation)
    assert len(pair.each) == 2
    for n, name in enumerate("AB"):
        alone = made("evaluation", tmp_path, "evaluate", foreign["folder"] / name, *foreign["data"])
        single, items = read_evaluation(alone), read_items(alone)
        assert pair.each[n].adapter == single.adapter
        assert pair.each[n].tasks[0].accuracy == single.tasks[0].accuracy
        assert pair.each[n].tasks[0].subjects[0].loss == single.tasks[0].subjects[0].loss
        ours = [line for line in lines if isinstance(line, ItemRecord) and line.checkpoint == name]
        assert [line.loss for line in ours] == [line.loss for line in items if isinstance(line, ItemRecord)]
        expected = plain_losses(
            foreign["models"][name], encode(foreign["models"][name].tokenizer, make_items(9), {}, 512)
        )
        np.testing.assert_allclose([line.loss for line in ours], expected.detach().numpy(), atol=1e-5)


def test_changes_are_paired_over_items(evaluation: Path) -> None:
    items = [line for line in read_items(evaluation) if isinstance(line, ItemRecord)]
    before, after = items[:9], items[9:]
    (change,) = read_evaluation(evaluation).changes or ()
    d = np.array([y.loss - x.loss for x, y in zip(before, after, strict=True)])
    assert (change.loss.value, change.loss.stderr) == pytest.approx((d.mean(), d.std(ddof=1) / 3))
    lost = sum(x.correct and not y.correct for x, y in zip(before, after, strict=True))
    won = sum(y.correct and not x.correct for x, y in zip(before, after, strict=True))
    assert (change.accuracy.only_before, change.accuracy.only_after) == (lost, won)
    assert change.accuracy.value == pytest.approx((won - lost) / 9)
    assert change.accuracy.p_value == mcnemar_exact(lost, won)
    assert change.accuracy.interval is None


def test_a_pair_s_page_says_what_changed(evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Elements((evaluation / "report.html").read_text(encoding="utf-8")).text
    (change,) = read_evaluation(evaluation).changes or ()
    assert f"{change.accuracy.only_before} only A answers right, {change.accuracy.only_after} only B" in text
    assert "Items whose answer changed" in text
    before = (evaluation / "report.html").read_bytes()
    assert main(["report", str(evaluation)]) == 0
    assert (evaluation / "report.html").read_bytes() == before


def test_the_bare_backbone_is_one_of_a_pair(foreign: dict[str, Any], tmp_path: Path) -> None:
    pair = read_evaluation(made("evaluation", tmp_path, "evaluate", "base", foreign["folder"] / "B", *foreign["data"]))
    bare = foreign["models"]["A"]
    with bare.without_adapter():
        expected = plain_losses(bare, encode(bare.tokenizer, make_items(9), {}, 512)).mean().item()
    assert pair.adapter is None
    assert pair.model.adapter_parameters == 0
    assert pair.tasks[0].subjects[0].loss.value == pytest.approx(expected, abs=1e-5)
    assert pair.other is not None
    assert pair.other.adapter == str(foreign["folder"] / "B")


def item(n: int, subject: str, correct: bool, loss: float, split: str = "test") -> ItemRecord:
    return ItemRecord(
        "A", "t", split, f"{subject}/{n}", subject, "A", "A" if correct else "B", correct, loss, np.zeros(2), 0.0
    )  # type: ignore[arg-type]


def test_subjects_are_told_apart_and_trained_items_left_out() -> None:
    before = [item(n, "xy"[n % 2], n % 3 == 0, 1.0, "train" if n < 4 else "test") for n in range(12)]
    after = [item(n, "xy"[n % 2], n % 4 == 0, 1.0 + n) for n in range(12)]
    (change,) = task_changes({"t": before}, {"t": after}, seed=0)
    assert [part.name for part in change.subjects] == ["x", "y"]
    assert [part.accuracy.n for part in change.subjects] == [6, 6]
    assert isinstance(change.held_out, PairedProportionChange)
    assert change.held_out.n == 8
    assert change.accuracy.clustered_stderr is not None
    with pytest.raises(ValueError, match="the same items in the same order"):
        task_changes({"t": before}, {"t": after[::-1]}, seed=0)


# --- mistakes ---------------------------------------------------------------------------------------------------------------


def test_mistakes_end_in_one_line(
    foreign: dict[str, Any], ends: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours, task = (
        str(foreign["folder"] / "A"),
        str(ends[0]),
        ["--task", "virology", "--output_dir", str(tmp_path)],
    )
    for given, said in (
        (["forecast", theirs, *task], "needs two checkpoints before its options, A and B, 1 given"),
        (["forecast", "base", "base", *task], "at least one of A and B must be a saved adapter, both are base"),
        (["forecast", theirs, theirs, *task], "A and B must be two checkpoints"),
        (["forecast", theirs, ours, *task], "must be of one backbone"),
        (["forecast", theirs, str(tmp_path / "nowhere"), *task], "adapter is needed (adapter_config.json"),
        (["forecast", "base", theirs], "at least one task must be named"),
        (["evaluate", theirs, ours, *task], "must be of one backbone"),
        (["evaluate", "base", "base", *task], "both are base"),
        (["evaluate", "a", "b", "c", *task], "at most two checkpoints, A and B, 3 were given"),
    ):
        assert said in complaints(given, capsys)
    assert not list(tmp_path.iterdir())
