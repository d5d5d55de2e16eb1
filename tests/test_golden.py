"""scripts/golden.py finds what differs from the committed references, and nothing else."""

import copy
import gzip
import json
import runpy
from typing import Any

import pytest
from runs import ROOT

GOLDEN = runpy.run_path(str(ROOT / "scripts/golden.py"))


@pytest.fixture(scope="module")
def reference() -> Any:
    return json.loads(gzip.decompress((ROOT / "tests/data/golden/run.json.gz").read_bytes()))


def found(then: Any, now: Any, tolerance: float = 0.0) -> list[str]:
    return list(GOLDEN["differences"](then, now, "", tolerance))


def test_the_reference_is_whole_and_equals_itself(reference: Any) -> None:
    assert list(reference) == ["machine", "adapters", "results", "items"]
    assert len(reference["adapters"]) == 2
    assert len(reference["items"]) > 500
    assert not {"timings", "versions", "environment"} & set(reference["results"])
    assert found(reference, copy.deepcopy(reference)) == []


@pytest.mark.parametrize(("factor", "exact", "tolerant"), [(1.05, 1, 1), (1 + 1e-3, 1, 0), (1.0, 0, 0)])
def test_a_number_that_is_another_is_found(reference: Any, factor: float, exact: int, tolerant: int) -> None:
    now = copy.deepcopy(reference)
    now["results"]["curvature"]["after_task1"]["gradient_norm"] *= factor
    assert len(found(reference, now)) == exact
    assert len(found(reference, now, GOLDEN["TOLERANCE"])) == tolerant


def test_what_rounding_decides_is_of_eigenvalues_in_the_bulk_and_names_of_adapters(reference: Any) -> None:
    """On another CPU one number of the run in a hundred is not compared at the most."""
    nothing = json.loads(json.dumps(reference), parse_float=lambda text: -1.0 - float(text))
    numbers = [f"run.{line}".partition(":")[0] for line in found(reference, nothing)]
    left_out = [path for path in numbers if GOLDEN["listed"](path, GOLDEN["ROUNDED"])]
    assert 20 < len(left_out) < len(numbers) / 100


def test_structure_order_and_text_are_compared() -> None:
    then = {"a": [1, 2.0], "b": "text"}
    assert found(then, {"b": "text", "a": [1, 2.0]}) == ["fields ['b', 'a'] instead of ['a', 'b']"]
    assert found(then, {"a": [1], "b": "text"}) == ["a: 1 entries instead of 2"]
    assert found(then, {"a": [1.0, 2.0], "b": "text"}) == ["a.0: 1.0 instead of 1"]
    assert found(then, {"a": [1, 2.0], "b": "other"}, 1e-4) == ["b: 'other' instead of 'text'"]


def test_a_field_may_be_added_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GOLDEN["differences"].__globals__, "ADDED", frozenset({"rows.*.new"}))
    then = {"rows": [{"value": 1}]}
    assert found(then, {"rows": [{"value": 1, "new": 2}]}) == []
    assert found(then, {"rows": [{"value": 1, "other": 2}]}) != []
    assert found(then, {"rows": [{"new": 2}]}) != []


def test_a_text_may_be_renamed_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GOLDEN["differences"].__globals__, "CHANGED", frozenset({"rows.*.said"}))
    then = {"rows": [{"said": "one", "value": 1}]}
    assert found(then, {"rows": [{"said": "two", "value": 1}]}) == []
    assert found(then, {"rows": [{"said": "two", "value": 2}]}) == ["rows.0.value: 2 instead of 1"]
    assert found(then, {"rows": [{"said": 2, "value": 1}]}) == ["rows.0.said: 2 instead of 'one'"]
