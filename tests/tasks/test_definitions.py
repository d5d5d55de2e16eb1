"""Tasks of one's own: every way of writing options and answers is read as it is meant, or refused in one line."""

import dataclasses
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import jsonschema
import pytest
from runs import ROOT, Shell, read_results
from tiny_models import llama2_tokenizer

from llm_forgetting.config.sections import DataConfig, ExperimentConfig
from llm_forgetting.errors import UnreachableError, UserError
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.tasks.definitions import list_defined
from llm_forgetting.tasks.prompt_format import filled, names_in
from llm_forgetting.tasks.prompts import fit, render
from llm_forgetting.tasks.sources import open_source
from llm_forgetting.tasks.task import Item, Task

EXAMPLE = ROOT / "examples" / "own_tasks.yaml"
ODD_TEXTS = ("None", "0", "nan", "NA", "null")


def write(folder: Path, definitions: str, **files: str) -> Path:
    """A definitions file, and data files beside it (`x_csv` is x.csv)."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    (folder / "own.yaml").write_text(definitions, encoding="utf-8")
    return folder / "own.yaml"


def jsonl(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def rows(file: Path, name: str, **settings: Any) -> tuple[Item, ...]:
    """The items that a task is drawn from."""
    source = source_of(DataConfig(definitions=str(file), tasks=(name,), **settings), lambda message: None)
    ((resolved, subjects),) = source.resolve([name])
    return source.pool(resolved, subjects).rows


def split(file: Path, *names: str, **settings: Any) -> list[Task]:
    data = DataConfig(definitions=str(file), tasks=names, **settings)
    return tasks_of(data, source_of(data, lambda message: None))


def complaint(file: Path, name: str = "own") -> str:
    with pytest.raises(UserError) as caught:
        rows(file, name)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_template_takes_names_as_they_are_written_and_values_as_they_are() -> None:
    template = "{{literally}} {a.b[0]}: {a}"
    assert names_in(template) == ("a.b[0]", "a")
    values = {"a.b[0]": "{a}", "a": "}{0.__class__} {{x}}"}
    assert filled(template, values) == "{literally} {a}: }{0.__class__} {{x}}"


@pytest.mark.parametrize("template", ["{}", "{a!r}", "{a:>3}", "{a", "a}", "{a{b}}"])
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the words are Python's own
        names_in(template)


# --- two options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["[no, yes]", "[yes, no]", "[False, True]", "[true, false]"])
def test_true_and_false_are_the_options_that_mean_them(tmp_path: Path, options: str) -> None:
    data = jsonl(*({"question": f"Q{n}?", "answer": answer} for n, answer in enumerate((True, False, "true", "False"))))
    items = rows(write(tmp_path, f"own: {{path: x.jsonl, choices: {options}}}", x_jsonl=data), "own")
    meant = [item.choices[item.answer].casefold() for item in items]
    assert [text in ("yes", "true") for text in meant] == [True, False, True, False]
    assert items[0].choices == tuple(
        options.strip("[]").split(", ")
    )  # as they are written, not as YAML understands them
    assert items[2].id == "own/x/2"


def test_true_among_other_options_needs_a_word_of_what_it_means(tmp_path: Path) -> None:
    data = jsonl({"question": "Q?", "answer": True})
    file = write(tmp_path, "own: {path: x.jsonl, choices: [wrong, right]}", x_jsonl=data)
    assert "x.jsonl, line 1: the answer True is none of its 2 options; say in own.answers how" in complaint(file)
    file = write(tmp_path, "own: {path: x.jsonl, choices: [wrong, right], answers: [false, true]}")
    assert rows(file, "own")[0].answer == 1


@pytest.mark.parametrize("answer", [1, "1", "B", "b", "yes", " yes "])
def test_fixed_options_take_an_index_a_letter_or_a_text(tmp_path: Path, answer: object) -> None:
    data = jsonl({"question": "Q?", "answer": answer})
    assert rows(write(tmp_path, "own: {path: x.jsonl, choices: [no, yes]}", x_jsonl=data), "own")[0].answer == 1


def test_what_the_answer_says_for_each_option_decides(tmp_path: Path) -> None:
    """Numbers that count from 1 are read as such, and nothing else is."""
    records = [{"question": "Q?", "choices": ["2", "3", "1"], "answer": answer} for answer in (1, "2", " 3 ")]
    file = write(tmp_path, "own: {path: x.jsonl, answers: [1, 2, 3]}", x_jsonl=jsonl(*records))
    assert [item.answer for item in rows(file, "own")] == [0, 1, 2]
    write(tmp_path, "own: {path: x.jsonl, answers: [1, 2, 3]}", x_jsonl=jsonl({**records[0], "answer": 0}))
    assert "the answer 0 is none of its 3 options" in complaint(file)


# --- five options, and mixed sizes --------------------------------------------------------------------------------------

FIVE = "question,a,b,c,d,e,key\nfirst?,p,q,r,s,t,E\n\nsecond?,p,q,r,s,t,A\n"


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_five_options_in_columns_of_their_own(tmp_path: Path, suffix: str) -> None:
    text = FIVE if suffix == "csv" else FIVE.replace(",", "\t")
    definitions = f"own: {{path: x.{suffix}, columns: {{choices: [a, b, c, d, e], answer: key}}, options: 5}}"
    first, second = rows(write(tmp_path, definitions, **{f"x_{suffix}": text}), "own")
    assert (first.answer, first.letters, second.answer, second.id) == (4, "ABCDE", 0, "own/x/1")
    assert render(first).endswith("about own.\n\nfirst?\nA. p\nB. q\nC. r\nD. s\nE. t\nAnswer:")


def test_a_row_of_another_size_is_named_where_the_size_was_said(tmp_path: Path) -> None:
    definitions = "own: {path: x.csv, columns: {choices: 'a,b,c,d,e', answer: key}, options: 5}"
    file = write(tmp_path, definitions, x_csv=FIVE + "third?,p,q,r,s,,A\n")
    found = complaint(file)
    assert re.search(r"own\.yaml: .*x\.csv, line 5: must have 5 options \(own\.options\), has 4; ", found)
    write(tmp_path, definitions.replace(", options: 5", ""))
    assert [len(item.choices) for item in rows(file, "own")] == [5, 5, 4]
    (listed,) = list_defined(file, lambda message: None)
    assert (listed.items, listed.options) == (3, "4 to 5")


# --- texts stay texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_none_and_0_are_texts_as_options_and_as_answers(tmp_path: Path, kind: str) -> None:
    """No cell is taken for a missing value or a number, and an answer is the option of that text."""
    columns = [f"o{n}" for n in range(5)]
    records: list[dict[str, object]] = [
        {"question": f"{text}?", **dict(zip(columns, ODD_TEXTS, strict=True)), "answer": text} for text in ODD_TEXTS
    ]
    mark = "\t" if kind == "tsv" else ","
    table = [mark.join(records[0]), *(mark.join(map(str, record.values())) for record in records)]
    data = jsonl(*records) if kind == "jsonl" else "\n".join(table)
    definitions = f"own: {{path: x.{kind}, columns: {{choices: {columns}}}, answers: text, options: 5}}"
    items = rows(write(tmp_path, definitions, **{f"x_{kind}": data}), "own")
    assert [item.choices for item in items] == [ODD_TEXTS] * 5
    assert [item.choices[item.answer] for item in items] == list(ODD_TEXTS)
    assert items[1].question == "0?"
    assert "B. 0\nC. nan\nD. NA\nE. null\nAnswer:" in render(items[1])


def test_fixed_options_that_yaml_would_read_as_something_else(tmp_path: Path) -> None:
    data = jsonl(*({"question": f"{text}?", "answer": text} for text in ODD_TEXTS))
    file = write(tmp_path, "own: {path: x.jsonl, choices: [None, 0, nan, NA, null]}", x_jsonl=data)
    assert [item.choices[item.answer] for item in rows(file, "own")] == list(ODD_TEXTS)


def test_a_cell_that_could_be_an_index_or_a_text_is_refused_until_it_is_said(tmp_path: Path) -> None:
    """In CSV "2" is an index and an option's text alike; a JSON string is the text where there is one."""
    table = "question,a,b,c,answer\nHow many?,2,0,1,2\n"
    definitions = "own: {path: x.csv, columns: {choices: [a, b, c]}}"
    file = write(tmp_path, definitions, x_csv=table)
    assert "line 2: the answer '2' could be several of its options; say in own.answers" in complaint(file)
    for kind, expected in (("text", 0), ("index", 2)):
        write(tmp_path, definitions.replace("}}", f"}}, answers: {kind}}}"))
        assert rows(file, "own")[0].answer == expected
    data = jsonl({"question": "How many?", "choices": ["2", "0", "1"], "answer": "2"})
    assert rows(write(tmp_path, "own: {path: x.jsonl}", x_jsonl=data), "own")[0].answer == 0


@pytest.mark.parametrize(
    ("kind", "answer", "expected"), [("letter", "C", 2), ("index", "1", 1), ("index", 1, 1), ("text", "C", 0)]
)
def test_one_way_of_writing_answers_excludes_the_others(
    tmp_path: Path, kind: str, answer: object, expected: int
) -> None:
    data = jsonl({"question": "Q?", "choices": ["C", "A", "1"], "answer": answer})
    file = write(tmp_path, f"own: {{path: x.jsonl, answers: {kind}}}", x_jsonl=data)
    assert rows(file, "own")[0].answer == expected


# --- the prompt ---------------------------------------------------------------------------------------------------------

PASSAGES = """\
own:
  path: x.jsonl
  choices: [no, yes]
  prompt:
    description: "Read, then judge ({subject})."
    question: "Passage: {passage}\\nQuestion: {question}? ({year})"
    answer: "Verdict:"
"""


def passages(count: int = 8) -> str:
    return jsonl(
        *(
            {
                "question": f"does {n} hold",
                "passage": f"some {{words}} {n} of it",
                "answer": n % 2 == 0,
                "year": 1900 + n,
            }
            for n in range(count)
        )
    )


def test_a_task_s_own_words_are_in_prompt_and_examples(tmp_path: Path) -> None:
    file = write(tmp_path, PASSAGES, x_jsonl=passages())
    (task,) = split(file, "own", train_items=3, test_items=3, few_shot=1)
    item, (shot,) = task.train[0], task.shots["own"]
    number, example = (int(each.id.rpartition("/")[2]) for each in (item, shot))
    asked = "Passage: some {{words}} {n} of it\nQuestion: does {n} hold? (190{n})\nA. no\nB. yes\nVerdict:"
    solved = asked.format(n=example, words="{words}") + (" B" if example % 2 == 0 else " A")
    expected = "Read, then judge (own).\n\n" + solved + "\n\n" + asked.format(n=number, words="{words}")
    assert render(item, (shot,)) == expected.replace("{{", "{").replace("}}", "}")
    assert shot not in task.train + task.test


def test_a_prompt_that_is_too_long_loses_the_passage_first_and_never_its_cue(tmp_path: Path) -> None:
    item = rows(write(tmp_path, PASSAGES, x_jsonl=passages()), "own")[0]
    whole = len(render(item))
    cut = fit(item, (), whole - 12, len)
    assert cut.text.endswith("of it\nQuestion: does 0 hold? (1900)\nA. no\nB. yes\nVerdict:")
    assert cut.question_truncated
    assert fit(item, (), 8, len).text == "Verdict:"
    with pytest.raises(UserError, match="must hold at least 'Verdict:'"):
        fit(item, (), 7, len)


def test_without_a_format_of_its_own_a_task_is_put_and_hashed_as_ever(tmp_path: Path) -> None:
    data = jsonl({"question": " Which {0} {x.y}? ", "choices": ["p", "q"], "answer": 0, "subject": "Bird song"})
    file = write(tmp_path, "own: {path: x.jsonl}", x_jsonl=data)
    (defined,) = rows(file, "own")
    source = open_source(source="local", path=str(tmp_path / "x.jsonl"))
    (plain,) = source.pool("bird_song", ("bird_song",)).rows
    assert defined == plain
    assert render(defined) == (
        "The following are multiple choice questions (with answers) about bird song.\n\nWhich {0} {x.y}?\nA. p\nB. q\nAnswer:"
    )
    assert plain.sha256 == "aa0d8828934916f57793f06518276ca25d735d6ca6b19535bec2af90b41d3b89"
    other = dataclasses.replace(plain, format=dataclasses.replace(plain.format, answer="Verdict:"))
    assert (other.sha256, other.content_key) == (plain.sha256, plain.content_key)


def test_doubled_braces_are_braces_in_every_template(tmp_path: Path) -> None:
    prompt = "{description: '{{a}} {subject}', question: '{{b}} {question}', answer: '{{c}}'}"
    data = jsonl({"question": "Q?", "answer": 0})
    file = write(tmp_path, f"own: {{path: x.jsonl, choices: [no, yes], prompt: {prompt}}}", x_jsonl=data)
    assert render(rows(file, "own")[0]) == "{a} own\n\n{b} Q?\nA. no\nB. yes\n{c}"


def test_a_description_can_be_left_out(tmp_path: Path) -> None:
    data = jsonl({"question": "Q?", "answer": 0})
    file = write(tmp_path, "own: {path: x.jsonl, choices: [no, yes], prompt: {description: ''}}", x_jsonl=data)
    assert render(rows(file, "own")[0]) == "Q?\nA. no\nB. yes\nAnswer:"


def test_two_and_five_options_with_a_tokenizer_that_adds_bos() -> None:
    """As LLaMA-2's: one BOS, and the letters are those that follow the task's own cue."""
    tokenizer = llama2_tokenizer()
    for task, letters in zip(
        split(EXAMPLE, "village", "workshop", train_items=8, test_items=4), ("AB", "ABCDE"), strict=True
    ):
        for item, encoded in zip(task.train, encode(tokenizer, task.train, {}, 600), strict=True):
            assert list(encoded.input_ids) == tokenizer(render(item))["input_ids"]
            assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
            assert tokenizer.convert_ids_to_tokens(encoded.letter_ids) == [f"▁{letter}" for letter in letters]


# --- sources ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_files_has_a_subject_per_file(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets", "", one_jsonl=jsonl({"question": "Q?", "answer": 1}), two_csv="question,answer\nR?,no\n")
    file = write(
        tmp_path, "own: {path: sets, choices: [no, yes]}\ntwo_only: {path: sets, choices: [no, yes], subjects: two}"
    )
    assert [(item.subject, item.answer) for item in rows(file, "own")] == [("one", 1), ("two", 0)]
    assert [item.subject for item in rows(file, "two_only")] == ["two"]
    (tmp_path / "sets" / "one.csv").write_text("question,answer\nS?,no\n")
    assert re.search(r"own\.path=.*sets holds files of one name", complaint(file))


def test_sets_without_columns_take_other_words_and_some_subjects(tmp_path: Path) -> None:
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    for subject in ("anatomy", "virology"):
        (tmp_path / "mmlu" / "test" / f"{subject}_test.csv").write_text("Which?,a,b,c,None,D\n")
    prompt = "prompt: {description: 'On {subject}', question: 'Q: {question}'}"
    file = write(
        tmp_path,
        f"own: {{path: mmlu, options: 4, subjects: [virology], {prompt}}}\n"
        f"toy: {{source: synthetic, subjects: [synthetic_2, synthetic_1], {prompt}}}\n"
        f"five: {{path: mmlu, options: 5}}\ncolumns: {{path: mmlu, columns: {{answer: x}}}}\n"
        "passage: {path: mmlu, prompt: {question: '{passage}'}}",
    )
    (item,) = rows(file, "own")
    assert item.id == "virology/test/0"
    assert render(item) == "On virology\n\nQ: Which?\nA. a\nB. b\nC. c\nD. None\nAnswer:"
    assert len(rows(file, "toy")) == 800
    assert render(rows(file, "toy")[0]).startswith("On synthetic 2\n\nQ: ")
    assert "anatomy/test/0: must have 5 options (five.options), has 4" in complaint(file, "five")
    assert "columns.columns has no meaning for a set without named columns" in complaint(file, "columns")
    assert "may name question and subject, which are all that this set has, named passage" in complaint(file, "passage")


def test_a_set_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, config: str | None) -> dict[str, list[dict[str, Any]]]:
        assert path == "some/set"
        answered = [{"question": f"q{n}", "passage": "p", "answer": n == 0} for n in range(2)]
        return {"train": answered, "validation": [{**row, "question": "v"} for row in answered], "odd": answered}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: ["default"])
    definition = "source: hub, path: some/set, choices: [no, yes], prompt: {question: '{passage}: {question}'}"
    file = write(
        tmp_path, f"own: {{{definition}}}\nhalf: {{{definition}, split: odd}}\nbad: {{{definition}, split: [odd, eve]}}"
    )
    items = rows(file, "own")
    assert [item.id for item in items] == ["own/train/0", "own/train/1", "own/val/0", "own/val/1"]
    assert [(item.question, item.answer) for item in items[:2]] == [("p: q0", 1), ("p: q1", 0)]
    assert [item.id for item in rows(file, "half")] == ["half/odd/0", "half/odd/1"]
    assert "bad.split must be among train, validation, odd of some/set, was odd, eve" in complaint(file, "bad")


def test_a_set_that_cannot_be_reached_stays_told_from_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    file = write(tmp_path, "own: {source: hub, path: some/set}")
    with pytest.raises(UnreachableError, match=r"own\.yaml: could not load .*check own\.path, own\.hub_config"):
        rows(file, "own")


# --- names --------------------------------------------------------------------------------------------------------------


def test_a_defined_name_wins_and_others_are_those_of_the_source(tmp_path: Path) -> None:
    data = "".join(jsonl({"question": f"Q{n}?", "answer": n % 2}) for n in range(6))
    other = "".join(
        jsonl({"question": f"R{n}?", "choices": ["p", "q"], "answer": 0, "subject": s})
        for n in range(6)
        for s in ("anatomy", "virology")
    )
    file = write(
        tmp_path,
        "Anatomy: {path: x.jsonl, choices: [no, yes]}\nlaw: {path: nowhere.jsonl}",
        x_jsonl=data,
        y_jsonl=other,
    )
    settings: dict[str, Any] = {"source": "local", "path": str(tmp_path / "y.jsonl"), "train_items": 2, "test_items": 2}
    virology, anatomy = split(file, "virology", "anatomy", **settings)
    assert (anatomy.name, virology.name) == ("anatomy", "virology")
    assert {item.question[0] for item in anatomy.train} == {"Q"}
    assert {item.question[0] for item in virology.train} == {"R"}
    with pytest.raises(UserError, match="task anatomy is named twice"):
        split(file, "anatomy", "Anatomy", **settings)
    with pytest.raises(
        UserError, match=r"'virolgy' is not in this data source; nearest: virology; .*own\.yaml defines anatomy, law"
    ):
        split(file, "virolgy", "anatomy", **settings)
    with pytest.raises(UserError, match=r"task .anatomyy. is not defined in .*own\.yaml; nearest: anatomy$"):
        split(file, "virology", "anatomyy", **settings)


def test_other_sources_are_not_opened_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "llm_forgetting.tasks.sources.embedded.fetch", lambda *args: pytest.fail("nothing must be downloaded")
    )
    tasks = split(EXAMPLE, "village", "workshop", train_items=8, test_items=4)
    assert [task.subjects for task in tasks] == [("village",), ("workshop",)]


# --- mistakes -----------------------------------------------------------------------------------------------------------

GOOD = jsonl({"question": "Q?", "choices": ["p", "q"], "answer": 0})


@pytest.mark.parametrize(
    ("definitions", "words"),
    [
        ("", "own.yaml defines no task"),
        ("# own:\n", "own.yaml defines no task"),
        ("- own\n", "own.yaml must map names of tasks to their fields, was"),
        ("own\n", "own.yaml must map names of tasks"),
        ("own: [\n", "own.yaml must be YAML in UTF-8: .*line 2"),
        ("own: {path: x.jsonl}\nown: {path: y.jsonl}\n", "must be YAML in UTF-8: own is there twice .*line 2"),
        ("own: {path: x.jsonl, path: y.jsonl}\n", "path is there twice"),
        ("own: {path: " + "[" * 10_000, "must be nested at most 50 deep"),
        ("own: {path: x.jsonl}\nOwn: {path: y.jsonl}\n", "every task needs a name of its own; own is defined twice"),
        ("own: &a [*a]\n", "must be YAML in UTF-8: an alias must not stand inside what it names .line 1"),
        ("? [a]\n: b\n", "must be YAML in UTF-8|must map names"),
        ("'a:b': {path: x.jsonl}\n", "a task's name must be made of letters, digits and underscores, was 'a:b'"),
        ("own: x.jsonl\n", "own must hold fields such as source, was 'x.jsonl'"),
        ("own: {}\n", "own.path must name the file, folder or hub data set, was not given"),
        ("own: {path: }\n", "own.path must be a text, was ''"),
        ("own: {path: x.jsonl, colums: {answer: key}}\n", "own.colums is not a field; did you mean columns?"),
        ("own: {path: x.jsonl, zzz: 1}\n", "own.zzz is not a field; there are source, path"),
        ("own: {path: x.jsonl, source: web}\n", "own.source must be one of embedded, local, hub, embedded_text, skills"),
        ("own: {source: embedded, path: x.jsonl}\n", "own.path has no meaning with own.source=embedded"),
        ("own: {source: synthetic, choices: [no, yes]}\n", "own.choices has no meaning with own.source=synthetic"),
        ("own: {path: x.jsonl, split: test}\n", "own.split has no meaning with own.source=local"),
        ("own: {path: x.jsonl, columns: {text: q}}\n", "own.columns.text is not a field; there are question"),
        ("own: {path: x.jsonl, columns: {answer: [a, b]}}\n", "own.columns.answer must name one column"),
        ("own: {path: x.jsonl, choices: no}\n", "own.choices must be a list of texts, was 'no'"),
        ("own: {path: x.jsonl, choices: [no]}\n", "own.choices must be 2 to 26 options, are 1"),
        ("own: {path: x.jsonl, choices: [no, No]}\n", "own.choices must not say the same twice"),
        ("own: {path: x.jsonl, choices: [no, yes], columns: {choices: c}}\n", "leave out own.columns.choices, or them"),
        ("own: {path: x.jsonl, choices: [no, yes], options: 3}\n", "own.options must be 2, as many as own.choices, was 3"),
        ("own: {path: x.jsonl, options: many}\n", "own.options must be a whole number from 2 to 26, was 'many'"),
        ("own: {path: x.jsonl, options: 1}\n", "own.options must be a whole number from 2 to 26, was '1'"),
        ("own: {path: x.jsonl, answers: number}\n", "own.answers must be index, letter, text, or the list"),
        ("own: {path: x.jsonl, options: 3, answers: [a, b]}\n", "one thing for each of 3 options, says 2"),
        ("own: {path: x.jsonl, prompt: {cue: x}}\n", "own.prompt.cue is not a field; there are description"),
        ("own: {path: x.jsonl, prompt: {answer: ' '}}\n", "own.prompt.answer must be a text"),
        ("own: {path: x.jsonl, prompt: {answer: '{question}'}}\n", "own.prompt.answer may name nothing in braces"),
        ("own: {path: x.jsonl, prompt: {description: '{passage}'}}\n", "may name {subject} in braces, named passage"),
        ("own: {path: x.jsonl, prompt: {question: 'Q'}}\n", "own.prompt.question must name a column such as {question}"),
        ("own: {path: x.jsonl, prompt: {question: '{question'}}\n", "own.prompt.question is no template"),
        ("own: {path: x.jsonl, prompt: {question: '{question!r}'}}\n", "own.prompt.question is no template"),
        ("own: {path: x.jsonl, prompt: {question: '{passage}'}}\n",
         "line 1: has no column 'passage', which own.prompt.question names, but question"),
        ("own: {path: x.jsonl, prompt: {question: '{choices.__class__}'}}\n", "has no column 'choices.__class__'"),
        ("own: {path: x.jsonl, prompt: {question: '{choices}'}}\n", "line 1: the choices must be a text"),
        ("own: {path: x.jsonl, columns: {answer: key}}\n",
         "has no column 'key' but question, choices, answer; set own.columns.answer"),
        ("own: {path: y.jsonl}\n", "own.path=.*y.jsonl does not exist; a relative path starts at the definitions' folder"),
        ("own: {path: own.yaml}\n", "own.path=.*own.yaml must be a file that ends in .jsonl, .json, .parquet, .csv, .tsv"),
        ("own: {path: empty.jsonl}\n", "own.path=.*empty.jsonl holds no item"),
        ("own: {path: empty.csv}\n", "own.path=.*empty.csv holds no item"),
        ("own: {path: short.csv}\n", "short.csv, line 2: must have 2 cells as the header, has 1"),
        ("own: {path: twice.csv}\n", "twice.csv, line 1: the header must name every column once"),
        ("own: {path: x.jsonl, subjects: law}\n", "task 'law' is not in this data source"),
    ],
)  # fmt: skip
def test_a_mistake_dies_in_one_line_that_names_it(tmp_path: Path, definitions: str, words: str) -> None:
    files = {"empty_jsonl": "\n", "empty_csv": "", "short_csv": "question,answer\nQ?\n", "twice_csv": "a,a\nQ?,0\n"}
    found = complaint(write(tmp_path, definitions, x_jsonl=GOOD, **files))
    assert "own.yaml" in found
    assert re.search(words.replace("{", r"\{"), found), found


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "data.definitions must be a YAML file" in complaint(tmp_path / "nowhere.yaml")
    assert "data.definitions must be a YAML file" in complaint(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"caf\xe9: {path: x.jsonl}\n")
    assert "latin.yaml must be YAML in UTF-8" in complaint(tmp_path / "latin.yaml")


# --- the command line ---------------------------------------------------------------------------------------------------


def test_the_defined_tasks_are_listed_with_counts_and_options(shell: Shell) -> None:
    done = shell("tasks", "--definitions", EXAMPLE)
    assert done.status == 0, done.stderr
    assert re.search(r"village +18 +2 +local JSONL", done.stdout)
    assert re.search(r"workshop +18 +5 +local CSV", done.stdout)
    assert "anatomy" not in done.stdout
    assert "/dev/null is a folder, pipe or device" in shell("tasks", "--definitions", "/dev/null").complaint


SIZES = ["--data.train_items", 10, "--data.test_items", 6]


def test_a_dry_run_counts_defined_tasks(shell: Shell) -> None:
    done = shell.run("--dry_run", "--data.definitions", EXAMPLE, "--tasks", "village,workshop", *SIZES)
    assert done.status == 0, done.stderr
    assert re.search(r"village +10 +6 +\d+", done.stdout)
    message = shell.run("--dry_run", "--data.definitions", "/nowhere.yaml", "--tasks", "village,workshop").complaint
    assert message.startswith("data.definitions must be a YAML file; /nowhere.yaml cannot be read")


def test_the_synthetic_model_knows_no_words_of_one_s_own(shell: Shell) -> None:
    assert "not those of data.definitions" in shell.run_tiny("--data.definitions", EXAMPLE).complaint


def test_a_run_on_two_and_five_options_and_what_may_change_before_it_goes_on(
    shell: Shell, llama_folder: Path, tmp_path: Path
) -> None:
    """With a tokenizer that adds BOS; edits of the definitions or of the data are refused, not mixed in."""
    (tmp_path / "own_tasks").mkdir()
    for name in ("own_tasks.yaml", "own_tasks/village.jsonl", "own_tasks/workshop.csv"):
        (tmp_path / name).write_text((EXAMPLE.parent / name).read_text())
    file, data = tmp_path / "own_tasks.yaml", tmp_path / "own_tasks" / "workshop.csv"
    small = ["--landscape.num_items", 4, "--landscape.self_test_items", 2, "--landscape.directions", 2]
    chosen = ["--model_name", llama_folder, "--data.source", "embedded", "--data.definitions", file, *small]
    chosen += ["--landscape.checkpoint_plane", "false", "--curvature.forecast", "false"]
    done = shell.run_tiny(*chosen, "--tasks", "village,workshop", *SIZES, "--num_epochs", 1)
    assert done.status == 0, done.stdout + done.stderr
    results = read_results(done.folder)
    schema = json.loads(
        resources.files("llm_forgetting").joinpath("data/results.schema.json").read_text(encoding="utf-8")
    )
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(results)] == []
    assert [task["options"] for task in results["tasks"]] == [[2], [5]]
    assert results["tasks"][0]["prompt"]["question"] == "Passage: {passage}\nQuestion: {question}?"
    assert "workshop.csv" in results["source"]
    records = [json.loads(line) for line in (done.folder / "items.jsonl").read_text().splitlines()]
    scored = {(record["task"], len(record["letter_logits"])) for record in records if "task" in record}
    assert scored == {("village", 2), ("workshop", 5)}

    for name in ("results.json", "phases/forgetting.json", "phases/landscape_after_task2.json"):
        (done.folder / name).unlink()
    text, table = file.read_text(), data.read_text()
    file.write_text(text + "# a remark\n")
    assert (
        "the configuration (config.yaml, and the file of data.definitions) must be the same as when"
        in shell.run("--resume", done.folder).complaint
    )
    file.write_text(text)
    data.write_text(table.replace("?", " then?"))
    message = shell.run("--resume", done.folder).complaint
    assert "the items of task workshop and their prompt must be those that the run in" in message
    data.write_text(table)
    again = shell.run("--resume", done.folder)
    assert again.status == 0, again.stderr
    assert {**read_results(done.folder), "timings": None} == {**results, "timings": None}

    adapter = done.folder / "checkpoint_after_task1"
    scan = ["landscape", adapter, "--task", "workshop", "--data.definitions", file, *SIZES, "--output_dir", tmp_path]
    scan += [*small, "--landscape.max_evaluations", 23, "--landscape.resolution", 9, "--output.dpi", 50]
    done = shell(*scan)
    assert done.status == 0, done.stderr
    file.write_text(text + "# a remark\n")
    assert "they differ" in shell(*scan, "--resume", done.folder).complaint


def test_the_fingerprint_is_of_the_definitions_content(tmp_path: Path) -> None:
    file = write(tmp_path, "own: {path: x.jsonl}\nother: {path: y.jsonl}\n")
    data = DataConfig(definitions=str(file), tasks=("own", "other"))
    before = ExperimentConfig(data=data).fingerprint
    assert ExperimentConfig(data=data).fingerprint == before
    file.write_text("own: {path: y.jsonl}\nother: {path: x.jsonl}\n")
    assert ExperimentConfig(data=data).fingerprint != before
    file.unlink()
    with pytest.raises(UserError, match=r"data\.definitions must be a YAML file; .*own\.yaml cannot be read"):
        _ = ExperimentConfig(data=data).fingerprint


def test_the_example_says_how_it_is_run() -> None:
    first, *_ = (line for line in EXAMPLE.read_text().splitlines() if "llm-forgetting run" in line)
    assert "--data.definitions examples/own_tasks.yaml --tasks village,workshop" in first
