"""`compare` of two logs of lm-evaluation-harness, written by hand as the harness writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_forgetting.cli.main import main
from llm_forgetting.forgetting.intervals import paired_proportion_change
from llm_forgetting.forgetting.mean_intervals import PairedMeanChange
from llm_forgetting.results.harness import harness_changes, read_harness_log

DATE = "2026-11-01T10-00-00.5"


def sample(n: int, values: dict[str, float], kind: str = "none", document: str = "") -> dict[str, Any]:
    return {
        "doc_id": n, "doc_hash": document or f"hash{n}", "filter": kind, "metrics": list(values),
        "arguments": {f"gen_args_{k}": {"arg_0": "?", "arg_1": f" {k}"} for k in range(4)}, **values,
    }  # fmt: skip


def log(folder: Path, samples: Sequence[dict[str, Any]], task: str = "own", date: str = DATE, **results: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"results": {task: results}, "versions": {task: 1.0}, "n-shot": {task: 0}}
    (folder / f"results_{date}.json").write_text(json.dumps(content))
    (folder / f"samples_{task}_{date}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    return folder


def test_what_changed_is_paired_by_document(tmp_path: Path) -> None:
    """50 documents, of which B has five others; B's are in another order, with other ids."""
    before = [n % 2 for n in range(50)]
    after = [int(n % 5 == 0) for n in range(50)]
    a = log(tmp_path / "a" / "model", [sample(n, {"acc": x, "f1": x / 2}) for n, x in enumerate(before)])
    log(tmp_path / "a" / "model", [sample(0, {"acc": 1.0})], date="2025-01-01T10-00-00.5")
    b = log(
        tmp_path / "b",
        [sample(99 - n, {"acc": y, "f1": y}, document=f"hash{n + 5}") for n, y in enumerate(after)][::-1],
        **{"acc,none": 0.2, "acc_stderr,none": 0.03},
    )
    found = harness_changes(read_harness_log(a.parent), read_harness_log(b))
    acc, f1 = (one.change for one in found)
    assert acc.change == paired_proportion_change(before[5:], after[:45])
    assert (acc.only_first, acc.only_second) == (5, 5)
    assert acc.transitions is not None
    assert acc.transitions.lost.by_chance == pytest.approx((1 - acc.first) * (1 - acc.second) / 3)
    assert isinstance(f1.change, PairedMeanChange)
    assert f1.change.value == pytest.approx(f1.second - f1.first)
    assert found[0].unpaired_z is None  # A reports no mean


def test_metrics_of_filters_are_told_apart(tmp_path: Path) -> None:
    samples = [
        one for n in range(4) for one in (sample(n, {"exact_match": 1}), sample(n, {"exact_match": 0}, "strict"))
    ]
    a = read_harness_log(log(tmp_path / "a", samples))
    changes = [one.change for one in harness_changes(a, a)]
    assert [(one.metric, one.first, one.change.value) for one in changes] == [
        ("exact_match", 1, 0),
        ("exact_match,strict", 0, 0),
    ]


def test_bad_folders_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = log(tmp_path / "good", [sample(0, {"acc": 1})])
    log(tmp_path / "other", [sample(0, {"acc": 1})], task="another")
    log(tmp_path / "unlogged", []).joinpath(f"samples_own_{DATE}.jsonl").unlink()
    log(tmp_path / "empty", [])
    log(tmp_path / "broken", []).joinpath(f"samples_own_{DATE}.jsonl").write_text("{}\n{ \n")
    log(tmp_path / "foreign", []).joinpath(f"samples_own_{DATE}.jsonl").write_text('{"text": 1}\n')
    log(tmp_path / "text", [sample(0, {"acc": 1})]).joinpath(f"results_{DATE}.json").write_text("[]")
    for name in ("one", "two"):
        log(tmp_path / "several" / name, [sample(0, {"acc": 1})])
    (tmp_path / "nothing").mkdir()
    for wrong, said in {
        "other": "must hold samples of a common task",
        "unlogged": "evaluate again with --log_samples",
        "empty": "must hold samples, it is empty",
        "broken": "line 2, must be JSON",
        "foreign": "must hold samples of lm-evaluation-harness (doc_id, doc_hash, metrics)",
        "text": "must be a JSON object",
        "several": "evaluations of several models (one, two)",
        "nothing": "must hold results_DATE.json",
    }.items():
        assert main(["compare", str(good), wrong]) == 2
        complaint = capsys.readouterr().err
        assert said in complaint
        assert complaint.count("\n") == 1
    assert main(["compare", "good", "good", "good"]) == 2
    assert "takes two logs" in capsys.readouterr().err
