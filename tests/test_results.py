"""Every JSON artifact, decoded with unknown keys refused and encoded again, is the same bytes; errors are one line."""

import gzip
import json
from typing import Any

import numpy as np
import pytest
from runs import ROOT, SmokeRun

from llm_forgetting.curvature.results import SpectralDensity
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.phase_artifacts import artifact_kind, phase_named
from llm_forgetting.files import decode, decode_lines, encode, encode_json, encode_lines, from_plain, schema_text
from llm_forgetting.forgetting.evaluation import TaskEvaluation
from llm_forgetting.forgetting.intervals import Interval
from llm_forgetting.forgetting.records import Line
from llm_forgetting.landscape.between_records import CheckpointPlaneScan
from llm_forgetting.results import Results
from llm_forgetting.study.records import CellFailure, StudyRecords


@pytest.fixture(scope="module")
def results(smoke_run: SmokeRun) -> dict[str, Any]:
    content = json.loads((smoke_run.path / "results.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_results_come_back_byte_by_byte(smoke_run: SmokeRun) -> None:
    text = (smoke_run.path / "results.json").read_text(encoding="utf-8")
    assert encode(decode(Results, text, extra="forbid")) == text


def test_phases_come_back_byte_by_byte(smoke_run: SmokeRun) -> None:
    paths = sorted((smoke_run.path / "phases").glob("*.json"))
    assert len(paths) > 8
    for path in paths:
        text, kind = path.read_text(encoding="utf-8"), artifact_kind(phase_named(path.stem))
        assert encode(decode(kind, text, extra="forbid"), kind) == text, path.name


def test_failures_come_back_byte_by_byte() -> None:
    place = {"pair": "a > b", "tasks": ["a", "b"], "factors": {"seed": 0, "training.learning_rate": 0.5}, "arm": "x"}
    for content in ({"cell": "c", "reason": "r"}, {"cell": "c", **place, "reason": "r", "trace": ""}):
        text = encode_json(content)
        assert encode(decode(CellFailure, text, extra="forbid")) == text


def test_the_lines_of_items_come_back_byte_by_byte(smoke_run: SmokeRun) -> None:
    text = (smoke_run.path / "items.jsonl").read_text(encoding="utf-8")
    assert encode_lines(decode_lines(list[Line], text, extra="forbid")) == text


def test_published_study_records_come_back_byte_by_byte() -> None:
    paths = list(ROOT.glob("docs/results/**/records.json.gz"))
    assert paths
    for path in paths:
        text = gzip.decompress(path.read_bytes()).decode()
        assert encode(decode(StudyRecords, text, extra="forbid")) == text


def _one_line(call: Any) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_error_names_file_path_and_fault(results: dict[str, Any]) -> None:
    content = json.loads(json.dumps(results))
    content["landscapes"]["after_task1"]["distance"] = "far"
    line = _one_line(lambda: from_plain(Results, content, file="results.json"))
    assert line.startswith("results.json: landscapes.after_task1.distance: ")
    assert "'far'" in line
    del content["landscapes"]["after_task1"]["distance"]
    line = _one_line(lambda: from_plain(Results, content, file="results.json"))
    assert line == "results.json: landscapes.after_task1.distance: Field required"


def test_an_unknown_key_is_ignored_or_refused() -> None:
    content = {"name": "x", "subjects": [], "accuracy": {"value": 1.0, "stderr": None, "n": 3, "later": 1}}
    assert from_plain(TaskEvaluation, content).accuracy.n == 3
    line = _one_line(lambda: from_plain(TaskEvaluation, content, extra="forbid"))
    assert "accuracy.later" in line


def test_text_that_is_no_json() -> None:
    assert _one_line(lambda: decode(Results, "{", file="results.json")).startswith("results.json must be JSON")


def test_numbers_that_are_not_finite() -> None:
    text = encode_json({"low": float("nan"), "high": float("inf"), "level": float("-inf"), "method": "x"})
    assert encode(decode(Interval, text)) == text
    text = encode_json({"eigenvalues": [float("nan"), 1.0], "weights": [float("-inf"), float("inf")]})
    density = decode(SpectralDensity, text)
    assert np.isnan(density.eigenvalues[0])
    assert encode(density) == text


@pytest.mark.parametrize("wrong", [[[1.0]], [None], ["far"], 1.0, "nan", [[1.0], [1.0, 2.0]]])
def test_an_array_of_another_shape_or_kind_is_refused(wrong: Any) -> None:
    content = {"eigenvalues": wrong, "weights": [1.0]}
    line = _one_line(lambda: from_plain(SpectralDensity, content))
    assert line.startswith("SpectralDensity: eigenvalues: must be lists of numbers, 1 deep")


def test_cells_outside_the_mask_are_null_and_those_inside_may_be_nan(results: dict[str, Any]) -> None:
    plane = json.loads(json.dumps(results["checkpoint_plane"]))
    i, j = np.argwhere(np.array(plane["inside"]))[0]
    plane["surfaces"]["synthetic_1"]["loss"][i][j] = "nan"
    record = from_plain(CheckpointPlaneScan, plane)
    assert json.loads(encode(record)) == plane
    plane["surfaces"]["synthetic_1"]["loss"][i][j] = None
    line = _one_line(lambda: from_plain(CheckpointPlaneScan, plane))
    assert "surfaces.synthetic_1.loss must be null exactly where inside is false" in line


def test_the_schema_is_generated_from_the_records() -> None:
    path = ROOT / "src/llm_forgetting/data/results.schema.json"
    assert path.read_text(encoding="utf-8") == schema_text(Results), "make schema"
