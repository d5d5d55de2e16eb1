"""Malformed files of completions: one clear line each, with file and row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tiny_models import llama2_tokenizer

from llm_forgetting.config.sections import DataConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.tasks.completion import LONGEST, Completion, Message
from llm_forgetting.tasks.task import Task

GOOD = '{"prompt": "2 + 2 =", "completion": " 4"}\n'
ROW = "x.jsonl, line 2: "


@dataclass(frozen=True)
class Case:
    """Files (text, bytes, or columns of parquet), what is said, and fields of the definition."""

    files: Mapping[str, str | bytes | Mapping[str, list[object]]]
    said: tuple[str, ...]
    fields: str = "path: x.jsonl, format: completion"


def second(row: str, *said: str) -> Case:
    """A bad row after a good one."""
    return Case({"x.jsonl": GOOD + row + "\n" + GOOD}, (ROW, *said))


def messages(row: str, *said: str) -> Case:
    good = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    return Case({"x.jsonl": good + row}, (ROW, *said), "path: x.jsonl, format: messages")


def turn(role: object, content: object) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": role, "content": content}]})


CASES = {
    "an empty file": Case({"x.jsonl": ""}, ("x.jsonl holds no item",)),
    "blank lines only": Case({"x.jsonl": "\n  \n"}, ("x.jsonl holds no item",)),
    "an empty list": Case({"x.json": "[]"}, ("x.json holds no item",), "path: x.json, format: completion"),
    "a broken line": second('{"prompt": "a", "completion": ', "not JSON in UTF-8"),
    "another encoding": Case({"x.jsonl": GOOD.encode() + b'{"prompt": "\xe9"}'}, (ROW, "not JSON in UTF-8")),
    "a list": second('["a", "b"]', "must be a JSON object"),
    "a number": second("4", "must be a JSON object"),
    "no prompt": second('{"completion": " 4"}', "has no column 'prompt' but completion"),
    "no completion": second('{"prompt": "a"}', "has no column 'completion' but prompt"),
    "a completion of white space": second('{"prompt": "a", "completion": "\\n"}', "the completion must be a text"),
    "a row of another format": second('{"messages": []}', "has no column 'prompt' but messages"),
    "a prompt that is a number": second('{"prompt": 2, "completion": "a"}', "the prompt must be a text, is 2"),
    "a prompt that is an object": second('{"prompt": {"a": 1}, "completion": "a"}', "the prompt must be a text"),
    "NUL": second('{"prompt": "a\\u0000", "completion": "a"}', "UTF-8 without NUL"),
    "half a surrogate": second('{"prompt": "a\\ud800", "completion": "a"}', "UTF-8 without NUL"),
    "a text without end": second(json.dumps({"prompt": "a" * LONGEST, "completion": "b"}), "at most 1,000,000 characters"),
    "a template's column that is a number": Case(
        {"x.jsonl": '{"prompt": "a", "completion": "b", "hint": [1]}'},
        ("x.jsonl, line 1: ", "the hint must be a text"),
        'path: x.jsonl, format: completion, prompt: {template: "{hint} {prompt}"}',
    ),
    "a template that is none": Case(
        {"x.jsonl": GOOD}, ("own.prompt.template is no template",), 'path: x.jsonl, format: completion, prompt: {template: "{"}'
    ),
    "a role that is unknown": messages(turn("robot", "a"), "the role of a message must be one of system,", "is 'robot'"),
    "a role that is a number": messages(turn(1, "a"), "every message must have role and content, both text"),
    "a last turn that is the user's": messages(turn("user", "a"), "the last message must be the assistant's", "'user'"),
    "content in parts": messages(turn("assistant", [{"type": "text", "text": "a"}]), "both text"),
    "an assistant who says nothing": messages(turn("assistant", " "), "must hold a text"),
    "no answer by the pattern": Case(
        {"x.jsonl": '{"prompt": "a", "completion": "#### 4"}\n{"prompt": "b", "completion": "four"}'},
        (ROW, "must hold an answer by score.answer='number', has none: 'four'"),
        "path: x.jsonl, format: completion, score: {answer: number}",
    ),
    "parquet without the columns": Case(
        {"x.parquet": {"question": ["a"]}}, ("x.parquet, row 1: has no column 'prompt'",), "path: x.parquet, format: completion"
    ),
    "parquet of numbers": Case(
        {"x.parquet": {"prompt": ["a", "b"], "completion": [1, 2]}},
        ("x.parquet, row 1: the completion must be a text, is 1",),
        "path: x.parquet, format: completion",
    ),
    "parquet without rows": Case(
        {"x.parquet": {"prompt": [], "completion": []}}, ("holds no item",), "path: x.parquet, format: completion"
    ),
    "CSV with a cell too few": Case(
        {"x.csv": "prompt,completion\na\n"}, ("x.csv, line 2: must have 2 cells",), "path: x.csv, format: completion"
    ),
    "CSV with a completion left empty": Case(
        {"x.csv": "prompt,completion\na,\n"},
        ("x.csv, line 2: the completion must be a text",),
        "path: x.csv, format: completion",
    ),
    "a test file without rows": Case(
        {"train.jsonl": GOOD, "test.jsonl": ""}, ("test.jsonl holds no item",), "path: ., format: completion"
    ),
    "a train file without rows": Case(
        {"train.jsonl": "", "test.jsonl": GOOD}, ("train.jsonl holds no item",), "path: ., format: completion"
    ),
    "labels that are none": Case(
        {"train.jsonl": '{"sentence": "a", "label": "b"}', "test.jsonl": "", "labels.json": '{"a": 1}'},
        ("labels.json must be a list of texts",),
        "path: ., format: cl_benchmark",
    ),
}  # fmt: skip


def read(folder: Path, case: Case) -> Task:
    for name, content in case.files.items():
        if isinstance(content, Mapping):
            pyarrow.parquet.write_table(pyarrow.table(dict(content)), folder / name)
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "own.yaml").write_text(f"own: {{{case.fields}}}\n")
    data = DataConfig(definitions=str(folder / "own.yaml"), tasks=("own",), train_items=1, test_items=1)
    return tasks_of(data, source_of(data, lambda message: None))[0]


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    with pytest.raises(UserError) as caught:
        read(tmp_path, case)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'own.yaml'}: ")
    assert [said for said in case.said if said not in line] == [], line
    assert "\n" not in line
    assert len(line) < 500


def encoded(item: Completion, most: int = 512, template: str | None = None) -> None:
    tokenizer = llama2_tokenizer(pad_token="<unk>")
    tokenizer.chat_template = template
    encode(tokenizer, [item], {}, most)


TURNS = (Message("user", "u"), Message("assistant", "a"))
TOKENS = {
    "special tokens only": (Completion("s/x/1", "s", "q", "</s>"), 512, None, "it has special tokens only"),
    "too long": (Completion("s/x/1", "s", "q", "abcdefgh"), 5, None, "needs data.max_tokens="),
    "no template": (Completion("s/x/1", "s", (), TURNS), 512, None, "has no chat template"),
    "a template that fails": (Completion("s/x/1", "s", (), TURNS), 512, "{{ raise_exception('a\nb') }}", "cannot be filled"),
    "a template that is broken": (Completion("s/x/1", "s", (), TURNS), 512, "{% for %}", "cannot be filled"),
    "a template that says nothing": (Completion("s/x/1", "s", (), TURNS), 512, "{{ '' }}", "item s/x/1"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_what_cannot_be_made_tokens_of_is_one_clear_line(name: str) -> None:
    item, most, template, said = TOKENS[name]
    with pytest.raises(UserError) as caught:
        encoded(item, most, template)
    assert "item s/x/1" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
