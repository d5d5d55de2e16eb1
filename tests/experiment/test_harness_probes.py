"""Probes that lm-evaluation-harness runs itself: every sample is what the harness gives on the same PEFT model."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from tiny_models import load
from transformers import AutoModelForCausalLM, AutoTokenizer

import llm_forgetting as lf
from llm_forgetting.cli.main import main
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.guards import check_names
from llm_forgetting.experiment.phases_probes import evaluate_probes
from llm_forgetting.experiment.session import Session
from llm_forgetting.forgetting.intervals import paired_proportion_change
from llm_forgetting.forgetting.probes import probes
from llm_forgetting.forgetting.records import SampleRecord
from llm_forgetting.forgetting.transitions import transitions
from llm_forgetting.models.language import harness
from llm_forgetting.models.language.harness import harness_samples, require_tasks
from llm_forgetting.progress import Silent
from llm_forgetting.results import read_items
from llm_forgetting.results.harness import harness_changes, read_harness_log

# The harness asks git for its own version.
pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]
CHOICE = """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm, aggregation: mean}]
"""
WRITE = """
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LIKELIHOOD = """
output_type: loglikelihood
doc_to_target: " {{choices[answer]}}"
metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks and a group of two of them, on 12 local documents."""
    folder = tmp_path_factory.mktemp("harness")
    documents = [{"question": f"Number {n}?", "choices": ["aa", "b", "cc"], "answer": n % 3} for n in range(12)]
    (folder / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    for name, settings in (("own_choice", CHOICE), ("own_write", WRITE), ("own_likelihood", LIKELIHOOD)):
        data = f"{{data_files: {{test: {folder / 'documents.jsonl'}}}, cache_dir: {folder / 'cache'}}}"
        common = f'dataset_path: json\ndataset_kwargs: {data}\ntest_split: test\ndoc_to_text: "{{{{question}}}}"'
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{settings}")
    (folder / "own_group.yaml").write_text("group: own_group\ntask: [own_choice, own_likelihood]\n")
    return folder


@pytest.fixture(autouse=True)
def no_description_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the harness seconds, and is in no sample."""
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "add_env_info", lambda storage: None)


def test_every_sample_is_the_harness_own(tasks: Path, llama_folder: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = load(llama_folder)
    pad, before = model.tokenizer.pad_token, random.getstate()
    names = ["own_choice", "own_write", "own_group"]
    found = harness_samples(model, names, tasks, 10, 4)
    assert (model.tokenizer.pad_token, random.getstate()) == (pad, before)
    assert not model.peft_model.training

    model.save(tmp_path)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llama_folder, dtype="float32"), str(tmp_path)
    )
    direct = HFLM(pretrained=plain.eval(), tokenizer=AutoTokenizer.from_pretrained(llama_folder), batch_size=4)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    for name, members in zip(names, (["own_choice"], ["own_write"], ["own_choice", "own_likelihood"]), strict=True):
        told: Any = lm_eval.simple_evaluate(
            model=direct, tasks=[name], task_manager=manager, limit=10, bootstrap_iters=0
        )
        expected = [(task, log) for task in members for log in told["samples"][task]]
        assert len(found[name]) == len(expected) == 10 * len(members)
        for sample, (task, log) in zip(
            sorted(found[name], key=lambda one: members.index(one.task)), expected, strict=True
        ):
            assert (sample.task, sample.id, sample.hash) == (task, str(log["doc_id"]), log["doc_hash"])
            assert sample.metrics
            assert sample.metrics == {metric: float(log[metric]) for metric in sample.metrics}
            assert sample.options == (3 if task == "own_choice" else 0)
        for metric in found[name][0].metrics if len(members) == 1 else ():
            mean = sum(sample.metrics[metric] for sample in found[name]) / 10
            assert mean == pytest.approx(told["results"][name][f"{metric},none"])
    assert set(found["own_choice"][0].metrics) == {"acc", "acc_norm"}
    assert set(found["own_group"][0].metrics) == {"acc"}


def test_a_checkpoint_of_a_run_is_scored_on_them(tasks: Path, llama_folder: Path, tmp_path: Path) -> None:
    config = lf.Experiment(
        "quickstart",
        model={"name": str(llama_folder)},
        data={
            "source": "skills", "tasks": ["largest", "reverse"], "train_items": 8, "test_items": 6,
            "probes": ["harness:own_choice"], "harness_tasks": str(tasks),
        },
        landscape={"num_items": 2, "self_test_items": 1},
    ).config  # fmt: skip
    check_names(config)
    session = Session(config, tmp_path, Silent())
    lines = evaluate_probes(session, 0)
    expected = harness_samples(session.model, ["own_choice"], tasks, 6, None)["own_choice"]
    assert lines == tuple(
        SampleRecord("initial", "harness:own_choice", "harness", one.id, one.task, one.hash, one.metrics, 3)
        for one in expected
    )
    found = probes(lines, ["initial"], seed=0) or ()
    assert [(probe.name, probe.measure, probe.n) for probe in found] == [
        ("harness:own_choice", "acc", 6),
        ("harness:own_choice", "acc_norm", 6),
    ]
    assert found[0].chance == pytest.approx(1 / 3)
    documents = (tasks / "documents.jsonl").read_text()
    (tasks / "documents.jsonl").write_text(documents.replace("Number 0", "Number zero"))
    try:
        with pytest.raises(UserError, match="the documents of harness:own_choice must be the same"):
            evaluate_probes(session, 0)
    finally:
        (tasks / "documents.jsonl").write_text(documents)


def test_saved_adapters_are_evaluated_in_the_harness(
    tasks: Path, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter's samples are those of its live model, the base model's those of a fresh adapter."""
    expected = {}
    for name, trained in (("base", False), ("adapter", True)):
        model = load(llama_folder, trained=trained)
        expected[name] = harness_samples(model, ["own_choice"], tasks, 8, None)["own_choice"]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    model.save(adapter)
    common = ["--harness", "own_choice", "--limit", "8", "--data.harness_tasks", str(tasks)]
    common += ["--model_name", str(llama_folder), "--output_dir", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["evaluate", "base", str(adapter), *common]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "What changed from A to B" in printed
    (folder,) = (tmp_path / "out").iterdir()
    lines = read_items(folder)
    for name, label in (("A", "base"), ("B", "adapter")):
        found = [
            (line.id, line.metrics) for line in lines if isinstance(line, SampleRecord) and line.checkpoint == name
        ]
        assert found == [(one.id, one.metrics) for one in expected[label]]
    assert main(["evaluate", *common]) == 0
    assert "own_choice, acc" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", *common, "--task", "anatomy"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_two_logs_of_the_harness_are_compared_by_document(
    tasks: Path, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    logged: list[Any] = []
    for name, trained in (("a", False), ("b", True)):
        model = load(llama_folder, trained=trained)
        tracker = EvaluationTracker(output_path=str(tmp_path / name))
        told: Any = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model.peft_model, tokenizer=model.tokenizer, batch_size=4),
            tasks=["own_choice"], task_manager=manager, limit=10 if trained else 12, bootstrap_iters=100,
            evaluation_tracker=tracker,
        )  # fmt: skip
        logged.append(told)
        samples = told.pop("samples")
        tracker.save_results_aggregated(results=told, samples=samples)
        tracker.save_results_samples(task_name="own_choice", samples=samples["own_choice"])
        told["samples"] = samples
    monkeypatch.chdir(tmp_path)
    first, second = (read_harness_log(tmp_path / name) for name in "ab")
    found = {one.change.metric: one for one in harness_changes(first, second)}
    for metric in ("acc", "acc_norm"):
        before, after = ([log[metric] for log in told["samples"]["own_choice"]] for told in logged)
        change = found[metric].change
        assert change.change == paired_proportion_change(before[:10], after)
        assert change.transitions == transitions(before[:10], after, [3] * 10)
        assert (change.only_first, change.only_second) == (2, 0)
        (a, da), (b, db) = (
            (told["results"]["own_choice"][f"{metric},none"], told["results"]["own_choice"][f"{metric}_stderr,none"])
            for told in logged
        )
        expected = (b - a) / (da**2 + db**2) ** 0.5 if da or db else None
        assert found[metric].unpaired_z == (None if expected is None else pytest.approx(expected))
    capsys.readouterr()
    assert main(["compare", "a", "b"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Unpaired z" in printed
    assert "2 documents are in A alone" in printed
    assert "own_choice, acc_norm" in (tmp_path / "compare.html").read_text()


def test_what_cannot_be_run_is_one_line(tasks: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="must be a folder of YAML files"):
        require_tasks(["own_choice"], tasks / "nowhere")
    (tasks / "elsewhere.yaml").write_text(
        f"task: elsewhere\ndataset_path: somebody/something_that_is_not_there\ntest_split: test\ndoc_to_text: x{CHOICE}"
    )
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    harness._manager.cache_clear()
    with pytest.raises(UserError, match="must be able to run elsewhere") as raised:
        harness_samples(load(llama_folder), ["elsewhere"], tasks, 2, None)
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda include_path=None, include_defaults=True: Known()
    )  # the harness' own thousands of files take it a minute
    with pytest.raises(UserError, match="has no task, group or tag 'nothing'"):
        require_tasks(["nothing"], tasks)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llm-forgetting\[harness\]'"):
        require_tasks(["own_choice"], tasks)


class Known:
    """An index of tasks without the harness' own."""

    all_tasks = ("own_choice",)
