"""Folders in the formats of TRACE and of O-LoRA's CL_Benchmark, run from the one YAML file that the examples have for each."""

import json
import shutil
from pathlib import Path

import pytest
from runs import ROOT

from llm_forgetting.cli.main import main
from llm_forgetting.results import Results, read_results

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]
SMALL = {
    "lora.rank": 2, "training.batch_size": 4, "training.num_epochs": 1, "data.train_items": 8, "data.test_items": 4,
    "data.max_tokens": 256, "landscape.max_evaluations": 23, "landscape.resolution": 3, "landscape.directions": 2,
    "landscape.num_items": 2, "landscape.self_test_items": 1, "landscape.paths": "false", "output.figures": "false",
    "landscape.checkpoint_plane": "false", "curvature.forecast": "false", "evaluation.recovery_items": 0,
}  # fmt: skip


def run(example: str, folder: Path, model: Path, tasks: str) -> Results:
    """The example beside the benchmark's folder, with a tiny model, two of its tasks and few items."""
    shutil.copy(ROOT / "examples" / example, folder / example)
    words = ["run", "--config", str(folder / example), "--model_name", str(model), "--tasks", tasks]
    words += [word for field, value in SMALL.items() for word in (f"--{field}", str(value))]
    assert main([*words, "--output_dir", str(folder / "outputs")]) == 0
    (path,) = (folder / "outputs").glob("experiment_*")
    return read_results(path)


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_a_folder_of_trace(tmp_path: Path, llama_folder: Path) -> None:
    for name in ("C-STANCE", "FOMC"):
        for split, count in (("train", 10), ("eval", 3), ("test", 5)):
            rows = [
                {"prompt": f"{name} {split} {n}. Stance? A or B. Answer:", "answer": "AB"[n % 2]} for n in range(count)
            ]
            write(tmp_path / "LLM-CL-Benchmark_500" / name / f"{split}.json", rows)
    results = run("trace.yaml", tmp_path, llama_folder, "c_stance,fomc")
    assert results.task_names == ("c_stance", "fomc")
    assert all(task.options == () for task in results.tasks)
    assert all(item.id.startswith(f"{task.name}/train/") for task in results.tasks for item in task.splits.train)
    assert all(item.id.startswith(f"{task.name}/test/") for task in results.tasks for item in task.splits.test)
    assert results.config.data.definitions == str(tmp_path / "trace.yaml")
    # TRACE's overall performance and backward transfer: of the last row, and of it and the diagonal.
    test = results.forgetting.test.accuracy
    R = [[cell.value for cell in row] for row in test.cells]
    assert test.average.value == pytest.approx((R[2][0] + R[2][1]) / 2)
    assert test.backward_transfer.value == pytest.approx(R[2][0] - R[1][0])
    assert "exact matches on the trained c_stance items" in results.answer


def test_a_folder_of_o_lora(tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"TC/dbpedia": ["Company", "Animal"], "SC/amazon": ["positive", "negative"]}
    for name, options in labels.items():
        write(tmp_path / "CL_Benchmark" / name / "labels.json", options)
        for split, count in (("train", 10), ("dev", 3), ("test", 5)):
            rows = [{"sentence": f"Sentence {split} {n}.", "label": options[n % 2]} for n in range(count)]
            write(tmp_path / "CL_Benchmark" / name / f"{split}.json", rows)
    results = run("cl_benchmark.yaml", tmp_path, llama_folder, "dbpedia,amazon")
    assert results.task_names == ("dbpedia", "amazon")
    assert [len(task.splits.test) for task in results.tasks] == [4, 4]
    assert main(["tasks", "--definitions", str(tmp_path / "cl_benchmark.yaml")]) == 2  # yahoo's folder is not there
    assert "CL_Benchmark/TC/yahoo" in capsys.readouterr().err


def test_tasks_are_defined_in_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "both.yaml"
    file.write_text("definitions: {a: {path: a.jsonl}}\ndata: {definitions: other.yaml}\n")
    assert main(["run", "--config", str(file), "--dry_run"]) == 2
    assert "must define tasks in `definitions` or name a file in data.definitions, does both" in capsys.readouterr().err
