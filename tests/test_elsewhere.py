"""Large arrays of a JSON document in an npz file beside it: what was written comes back, to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.files import decode, encode_with_arrays
from llm_forgetting.files.elsewhere import MOST_NUMBERS, put_back, set_aside
from llm_forgetting.files.manifest import read_checked

RNG = np.random.default_rng(0)


def document(cells: int) -> dict[str, Any]:
    """One large surface with all that JSON cannot hold, and much that is no array."""
    surface = RNG.normal(size=(cells, 500))
    surface[0, :3] = np.nan, np.inf, -np.inf
    places = surface.tolist()
    places[1][:400] = [None] * 400
    return {
        "name": "a/b~c",
        "surfaces": {"x.y/z": {"loss": surface.tolist(), "masked": places, "inside": (surface > 0).tolist()}},
        "steps": [0.5, 1.0],
        "lines": list(range(1000)),
        "names": ["a", "b"] * 300,
        "ragged": [[1.0], [2.0, 3.0]],
        "log": [{"loss": 0.1}] * 300,
        "few": [[None, 1.0]],
        "nothing": [],
    }


def test_what_is_set_aside_comes_back_to_the_bit() -> None:
    before = document(300)
    text, arrays = set_aside(before, "results.npz")
    assert arrays is not None
    assert len(json.dumps(text)) < 30_000
    assert text["surfaces"]["x.y/z"]["loss"] == {"file": "results.npz", "key": "surfaces/x.y~1z/loss"}
    assert [text[key] for key in ("steps", "names", "ragged", "log", "few", "nothing")] == [
        before[key] for key in ("steps", "names", "ragged", "log", "few", "nothing")
    ]
    after = put_back(json.loads(json.dumps(text)), {"results.npz": arrays}.__getitem__)
    assert repr(after) == repr(before)  # NaN is not equal to itself
    assert set_aside(before, "results.npz")[1] == arrays  # the same bytes every time


def test_a_document_of_few_numbers_keeps_them() -> None:
    small = document(50)
    assert set_aside(small, "results.npz") == (small, None)
    most = {"values": [0.5] * MOST_NUMBERS}
    assert set_aside(most, "x.npz")[1] is None
    assert set_aside({"values": [0.5] * (MOST_NUMBERS + 1)}, "x.npz")[1] is not None


def test_a_folder_s_record_is_checked_with_its_arrays(tmp_path: Path) -> None:
    (tmp_path / "phases").mkdir()
    folder, content = RunFolder(tmp_path), {"values": [0.25] * (MOST_NUMBERS + 1), "name": "x"}
    folder.write_record("results.json", content)
    assert {path.name for path in tmp_path.glob("results.*")} == {"results.json", "results.npz"}
    assert (tmp_path / "results.json").stat().st_size < 200
    assert read_checked(dict, tmp_path, "results.json") == content
    (tmp_path / "results.npz").write_bytes(b"x" + (tmp_path / "results.npz").read_bytes()[1:])
    with pytest.raises(UserError, match=r"results\.npz must be what was written"):
        read_checked(dict, tmp_path, "results.json")
    (tmp_path / "results.npz").unlink()
    with pytest.raises(UserError, match=r"results\.npz must be a file that can be read"):
        read_checked(dict, tmp_path, "results.json")


def test_arrays_that_are_not_there_end_in_one_line() -> None:
    text, arrays = encode_with_arrays({"values": [0.5] * (MOST_NUMBERS + 1)}, "x.npz")
    assert arrays is not None
    with pytest.raises(UserError, match=r"x\.npz must hold other, an array of the JSON file beside it"):
        decode(dict, text.replace('"key": "values"', '"key": "other"'), beside=lambda name: arrays)
    with pytest.raises(UserError, match=r"x\.npz must hold values, an array of .*: File is not a zip file"):
        decode(dict, text, beside=lambda name: b"no zip")
