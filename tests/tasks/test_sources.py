"""Local files and hub data sets give the same items, and say which row is bad."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.mmlu import ROWS
from llm_forgetting.tasks.prompts import render
from llm_forgetting.tasks.record_files import read_records
from llm_forgetting.tasks.sources import LoadedSource, load_tasks, open_source

CSV_ROWS = {
    "dev/anatomy_dev.csv": "Shot one?,a,b,c,d,A\nShot two?,a,b,c,d,B\n",
    "val/anatomy_val.csv": '"Which of ""these""?",None,0,1.50,NA,A\n',
    "test/anatomy_test.csv": (
        '"First line, with a comma\nsecond ""quoted"" line",None,0,"x, y",nan,D\n'
        "\n"
        "Same question?,1,2,3,4,C\n"
        "same  Question?,4,3,2,1,B\n"
        "Another?,TRUE,FALSE,null,,B\n"
    ),
    "dev/virology_dev.csv": "Shot three?,a,b,c,d,C\n",
    "test/virology_test.csv": "Same question?,1,2,3,4,C\nLast?,α,β,γ,δ,D\nLater?,1,2,3,4,A\n",
}


@pytest.fixture
def mmlu_folder(tmp_path: Path) -> Path:
    for name, text in CSV_ROWS.items():
        file = tmp_path / "mmlu" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "mmlu"


def write_jsonl(file: Path, *records: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def a_record(**changes: object) -> dict[str, object]:
    return {"question": "Q?", "choices": ["red", "green", "blue"], "answer": 1} | changes


def local(path: Path, **settings: Any) -> LoadedSource:
    source = open_source(source="local", path=str(path), **settings)
    assert isinstance(source, LoadedSource)
    return source


def refused(match: str, **settings: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        open_source(**settings)
    assert "\n" not in str(caught.value)


# --- MMLU's CSV files


def test_mmlu_files_keep_every_cell_as_text(mmlu_folder: Path) -> None:
    source = local(mmlu_folder)
    assert source.subjects() == {"anatomy": 5, "virology": 3}
    assert "MIT" in source.description
    pool = source.pool("anatomy", ("anatomy",))
    assert [item.id for item in pool.rows] == ["anatomy/val/0", *(f"anatomy/test/{row}" for row in range(4))]
    assert pool.rows[0].question == 'Which of "these"?'
    assert pool.rows[0].choices == ("None", "0", "1.50", "NA")
    assert pool.rows[1].question == 'First line, with a comma\nsecond "quoted" line'
    assert pool.rows[1].choices == ("None", "0", "x, y", "nan")
    assert pool.rows[1].answer == 3
    assert pool.rows[4].choices == ("TRUE", "FALSE", "null", "")
    assert [shot.id for shot in pool.shots["anatomy"]] == ["anatomy/dev/0", "anatomy/dev/1"]
    assert render(pool.rows[0]).endswith("A. None\nB. 0\nC. 1.50\nD. NA\nAnswer:")


def test_tasks_are_disjoint_across_subjects(mmlu_folder: Path) -> None:
    settings: dict[str, Any] = {"test_items": None, "train_fraction": 0.5, "items_per_task": None, "few_shot": 1}
    anatomy, virology = load_tasks(local(mmlu_folder), ["Anatomy", "virology"], train_items=1, seed=0, **settings)
    assert (anatomy.duplicates_removed, virology.duplicates_removed) == (1, 1)
    assert (len(anatomy.train), len(anatomy.test), len(virology.test)) == (1, 3, 1)
    assert anatomy.shots["anatomy"][0].question == "Shot one?"
    (health,) = load_tasks(local(mmlu_folder), ["health"], train_items=2, seed=0, **settings)
    assert health.subjects == ("anatomy", "virology")
    assert health.duplicates_removed == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("ok?,1,2,3,4,A\nshort?,1,2,3,A\n", r"anatomy_test\.csv, line 2: .*has 5 cells"),
        ("ok?,1,2,3,4,E\n", r"anatomy_test\.csv, line 1: .*A to D.*'E'"),
        ('ok?,1,2,3,4,A\n"never closed,1,2,3,4,A\n', r"anatomy_test\.csv, after line 2: not CSV"),
    ],
)
def test_a_malformed_csv_row_is_named(mmlu_folder: Path, text: str, match: str) -> None:
    (mmlu_folder / "test" / "anatomy_test.csv").write_text(text)
    refused(match, source="local", path=str(mmlu_folder))


def test_a_csv_file_that_is_not_utf8_is_named(mmlu_folder: Path) -> None:
    (mmlu_folder / "test" / "anatomy_test.csv").write_bytes(b"caf\xe9?,1,2,3,4,A\n")
    refused(r"anatomy_test\.csv, after line 0: not CSV in UTF-8", source="local", path=str(mmlu_folder))


def test_folders_without_items_are_refused(tmp_path: Path, mmlu_folder: Path) -> None:
    refused("data.path=.*nowhere does not exist", source="local", path=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refused("data.path=.*empty must be a folder with dev/", source="local", path=str(tmp_path / "empty"))
    (tmp_path / "hollow" / "test").mkdir(parents=True)
    refused("data.path=.*hollow holds no item", source="local", path=str(tmp_path / "hollow"))
    refused("data.columns is for JSONL", source="local", path=str(mmlu_folder), columns={"answer": "key"})


# --- JSONL


def test_jsonl_takes_indices_letters_and_texts(tmp_path: Path) -> None:
    answers: list[object] = [1, "B", "b", "green", " green ", "1"]
    file = write_jsonl(tmp_path / "Birds of prey.jsonl", *(a_record(answer=answer) for answer in answers))
    source = local(file)
    assert source.subjects() == {"birds_of_prey": 6}
    rows = source.pool("birds_of_prey", ("birds_of_prey",)).rows
    assert {item.answer for item in rows} == {1}
    assert rows[2].id == "birds_of_prey/Birds of prey/2"
    assert rows[0].choices == ("red", "green", "blue")


def test_a_folder_of_jsonl_has_a_subject_per_file_unless_rows_say_so(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "birds.jsonl", a_record(), "", a_record(question="R?"))
    write_jsonl(tmp_path / "data" / "fish.jsonl", a_record(), a_record(subject="Deep-Sea Fish"), a_record(subject=" "))
    source = local(tmp_path / "data")
    assert source.subjects() == {"birds": 2, "deep_sea_fish": 1, "fish": 2}
    assert [item.id for item in source.pool("birds", ("birds",)).rows] == ["birds/birds/0", "birds/birds/2"]
    assert "birds.jsonl, fish.jsonl" in source.description


def test_jsonl_columns_can_be_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", {"stem": "Q?", "a": "None", "b": "0", "key": "B", "field": "Law"})
    columns = {"question": "stem", "choices": "a, b", "answer": "key", "subject": "field"}
    (item,) = local(file, columns=columns).pool("law", ("law",)).rows
    assert (item.question, item.choices, item.answer, item.subject) == ("Q?", ("None", "0"), 1, "law")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ("{half", "line 2: not JSON"),
        ("[1, 2]", "line 2: must be a JSON object"),
        (a_record(question=None), "line 2: the question must be a text, is None"),
        (a_record(question="  "), "line 2: the question must be a text"),
        ({"question": "Q?", "answer": 0}, r"line 2: has no column 'choices' but question, answer; set data\.columns"),
        (a_record(choices="red"), "line 2: the options must be a list of texts"),
        (a_record(choices=["red", 2]), "line 2: the options must be a list of texts"),
        (a_record(choices={"text": ["r", "g"], "label": ["A"]}), "line 2: the options must be"),
        (a_record(choices=["red"], answer=0), "line 2: needs 2 to 26 options, has 1"),
        (a_record(answer=3), "line 2: the answer 3 is none of its 3 options"),
        (a_record(answer=-1), "line 2: the answer -1 is none"),
        (a_record(answer=True), "line 2: the answer True is none"),
        (a_record(answer="D"), "line 2: the answer 'D' is none"),
        (a_record(answer=""), "line 2: the answer '' is none"),
        (a_record(choices=["B", "A"], answer="A"), "line 2: the answer 'A' could be several"),
        (a_record(choices=["same", "same"], answer="same"), "line 2: the answer 'same' could be several"),
    ],
)
def test_a_malformed_jsonl_row_is_named(tmp_path: Path, record: object, match: str) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", a_record(), record)
    refused(rf"x\.jsonl, {match}", source="local", path=str(file))


def test_jsonl_without_items_or_the_named_subject_is_refused(tmp_path: Path) -> None:
    refused("holds no item", source="local", path=str(write_jsonl(tmp_path / "x.jsonl", "")))
    file = write_jsonl(tmp_path / "y.jsonl", a_record())
    refused("has no column 'field'", source="local", path=str(file), columns={"subject": "field"})


# --- the hub


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def write_hub_folder(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> Path:
    """A data set folder as on the hub: configurations with splits, declared in README.md."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, records in splits.items():
            write_jsonl(folder / config / f"{split}.jsonl", *records)
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def test_mmlu_on_the_hub_loads_only_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load_dataset(path: str, config: str) -> dict[str, list[dict[str, Any]]]:
        loaded.append((path, config))
        return {
            split: [a_record(question=f"{config} {split} {row}", subject="") for row in range(n)]
            for split, n in (("auxiliary_train", 9), ("test", 3), ("validation", 2), ("dev", 1))
        }

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source(source="hub")
    assert source.subjects() == ROWS
    assert loaded == []
    pool = source.pool("x", ("anatomy", "virology"))
    source.pool("x", ("anatomy",))
    assert loaded == [("cais/mmlu", "anatomy"), ("cais/mmlu", "virology")]
    places = ("val/0", "val/1", "test/0", "test/1", "test/2")
    assert [item.id for item in pool.rows[:5]] == [f"anatomy/{place}" for place in places]
    assert pool.shots["virology"][0].question == "virology dev 0"
    assert "cais/mmlu" in source.description


def test_a_local_copy_of_mmlu_gives_its_items(offline: Path) -> None:
    splits = {"dev": [a_record()], "validation": [a_record(question="None")], "test": [a_record(choices=["None", "0"])]}
    folder = write_hub_folder(offline / "copy", {"anatomy": splits, "virology": splits, "all": splits})
    source = open_source(source="hub", path=str(folder))
    assert source.subjects() == {"anatomy": 2, "virology": 2}
    pool = source.pool("anatomy", ("anatomy",))
    assert [item.id for item in pool.rows] == ["anatomy/val/0", "anatomy/test/0"]
    assert pool.rows[1].choices == ("None", "0")


def test_options_with_labels_as_in_arc(offline: Path) -> None:
    def arc(question: str, labels: list[str], key: str) -> dict[str, Any]:
        return {"question": question, "choices": {"text": ["u", "v", "w"], "label": labels}, "answerKey": key}

    letters, numbers = ["A", "B", "C"], ["1", "2", "3"]
    splits = {
        "train": [arc("one", letters, "C"), arc("two", numbers, "3")],
        "test": [arc("three", letters, "C"), arc("withheld", letters, "")],
    }
    folder = write_hub_folder(offline / "arc", {"ARC-Easy": splits, "ARC-Challenge": splits})
    refused("has 2 configurations; set data.hub_config to one of ARC-", source="hub", path=str(folder))
    columns = {"answer": "answerKey"}
    source = open_source(source="hub", path=str(folder), hub_config="ARC-Challenge", columns=columns)
    assert source.subjects() == {"arc_challenge": 3}
    rows = source.pool("arc_challenge", ("arc_challenge",)).rows
    assert [item.id for item in rows] == [f"arc_challenge/{place}" for place in ("train/0", "train/1", "test/0")]
    assert {(item.choices, item.answer) for item in rows} == {(("u", "v", "w"), 2)}
    refused("train row 0: has no column 'answer'", source="hub", path=str(folder), hub_config="ARC-Easy")


def test_a_set_with_one_configuration_is_named_after_itself(offline: Path) -> None:
    choices = [{"label": "p", "text": "red"}, {"label": "q", "text": "green"}]
    rows = [a_record(choices=choices, answer="q", subject=subject) for subject in ("High school law", None)]
    folder = write_hub_folder(offline / "My-set", {"default": {"dev": rows[:1], "validation": rows}})
    source = open_source(source="hub", path=str(folder))
    assert source.subjects() == {"high_school_law": 1, "my_set": 1}
    pool = source.pool("my_set", ("my_set",))
    assert (pool.rows[0].id, pool.rows[0].choices, pool.rows[0].answer) == ("my_set/val/1", ("red", "green"), 1)
    assert "licence: see its card" in source.description


def test_sets_without_usable_rows_are_refused(offline: Path) -> None:
    withheld = write_hub_folder(offline / "withheld", {"default": {"test": [a_record(answer=-1)]}})
    refused("no row with an answer", source="hub", path=str(withheld))
    other = write_hub_folder(offline / "other", {"default": {"extra": [a_record()]}})
    refused("needs a split train, validation or test, has extra", source="hub", path=str(other))


def test_a_set_that_cannot_be_reached_is_one_line(offline: Path) -> None:
    refused(r"could not load .*no/such-set .*data\.source=local", source="hub", path="no/such-set")
    refused(r"could not load .*no/such-set \(x\)", source="hub", path="no/such-set", hub_config="x")
    source = open_source(source="hub")
    with pytest.raises(UserError, match=r"could not load .*cais/mmlu \(anatomy\)") as caught:
        source.pool("anatomy", ("anatomy",))
    assert "\n" not in str(caught.value)


def test_a_gated_set_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, config: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' is a gated dataset on the Hub.\nMore text")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused("gated dataset.*accept its terms.*hf auth login", source="hub", path="some/set", hub_config="x")


# --- choosing


def test_impossible_combinations_are_refused(tmp_path: Path) -> None:
    refused("must be one of embedded, local, hub, embedded_text, skills, synthetic, is 'web'", source="web")
    refused("data.source=local needs data.path", source="local")
    refused("data.hub_config=x needs data.source=hub", source="local", path=str(tmp_path), hub_config="x")
    refused("data.source=embedded takes no data.path", source="embedded", path="x")
    refused("data.source=embedded takes no data.path", source="embedded", columns={"answer": "x"})
    refused("data.columns has no 'answers'", source="hub", columns={"answers": "x"})


def test_the_generator_is_a_source_too() -> None:
    source = open_source(source="synthetic")
    first, *_ = source.subjects()
    assert source.pool(first, (first,)).rows


def test_a_pipe_is_no_file_of_records(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=r"rows\.jsonl must be a regular file, and is a folder, pipe or device"):
        read_records(tmp_path / "rows.jsonl")
