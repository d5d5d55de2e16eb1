"""Prompts with completions: skills, and records in every format, by a line in a definitions file."""

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tiny_models import llama2_tokenizer

from llm_forgetting.config.sections import DataConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.tasks import source_of, tasks_of
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.tasks.completion import Completion, Message
from llm_forgetting.tasks.skills import SKILLS, skill_item
from llm_forgetting.tasks.task import Task

ROMAN = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}
CHAT = (
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def from_roman(text: str) -> int:
    values = [ROMAN[letter] for letter in text]
    return sum(-v if any(w > v for w in values[n + 1 :]) else v for n, v in enumerate(values))


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def listed(question: str) -> list[str]:
    return re.findall(r"\w+", question.partition(": ")[2])


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# What is right, worked out from the question alone.
RIGHT: dict[str, Callable[[str], str]] = {
    "alphabetical": lambda q: sorted(listed(q))[0],
    "reverse": lambda q: "".join(reversed(listed(q)[0])),
    "last_letters": lambda q: " ".join(word[-1] for word in listed(q)),
    "capitals": lambda q: " ".join(word.upper() for word in listed(q)),
    "plural": lambda q: (noun := q.split()[5].strip(",")) + ("nen" if re.search("[ao]$", noun) else "mul"),
    "largest": lambda q: str(max(numbers(q))),
    "sorting": lambda q: " ".join(map(str, sorted(numbers(q)))),
    "arithmetic": lambda q: str(eval(q.strip(" ="))),
    "sequence": lambda q: str(2 * numbers(q)[3] - numbers(q)[2]),
    "counting": lambda q: str(sum(letter == "a" for letter in listed(q))),
    "weekday": lambda q: DAYS[(DAYS.index(q.split()[-1].strip("?")) + numbers(q)[0] * (1 if "after" in q else -1)) % 7],
}


@pytest.mark.parametrize("skill", RIGHT)
@pytest.mark.parametrize(("difficulty", "shifted"), [(1, False), (1, True), (3, False)])
def test_a_skills_answer_is_right(skill: str, difficulty: int, shifted: bool) -> None:
    for row in range(20):
        item = skill_item(skill, row, difficulty, shifted=shifted)
        question = str(item.prompt).removesuffix("\nAnswer:")
        assert item.completion == f" {RIGHT[skill](question)}", question


def test_the_answers_of_the_others_are_right() -> None:
    for row in range(20):
        roman = skill_item("roman", row, 2, shifted=bool(row % 2))
        assert from_roman(str(roman.completion).strip()) == numbers(str(roman.prompt))[0]
        date = skill_item("dates", row, 2, shifted=False)
        days, rest = re.findall(r": (?:(\d+) days after )?(.*)\n", str(date.prompt))[0]
        there = datetime.datetime.strptime(rest, "%d %B %Y") + datetime.timedelta(int(days or 0))
        assert date.completion == f" {there:%Y-%m-%d}"
        odd = skill_item("odd_one_out", row, 1, shifted=False)
        assert str(odd.completion).strip() in listed(str(odd.prompt))
    units = skill_item("units", 0, 1, shifted=False)
    assert numbers(str(units.completion))[0] % numbers(str(units.prompt))[0] == 0


def test_a_fact_is_one_however_it_is_asked() -> None:
    known: dict[tuple[str, str], set[str]] = {}
    for shifted in (False, True):
        for row in range(60):
            item = skill_item("facts", row, 1, shifted=shifted)
            place = next(
                word for word in re.findall(r"[A-Z]\w+", str(item.prompt)) if word[:3] in ("Vel", "Mar", "Tor")
            )
            kind = next(kind for kind in ("mayor", "found", "sell", "trade") if kind in str(item.prompt))
            known.setdefault((place, {"sell": "trade"}.get(kind, kind)), set()).add(str(item.completion))
    assert {len(answers) for answers in known.values()} == {1}


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_has_as_many_different_items_as_a_run_asks_for(skill: str) -> None:
    size = {"facts": 30}.get(skill, 160)
    (task,) = skill_tasks(skill, train_items=size, test_items=min(size, 24 if skill == "facts" else 60))
    assert not {item.content_key for item in task.train} & {item.content_key for item in task.test}
    assert [item.id for item in task.train] == [item.id for item in skill_tasks(skill, train_items=size)[0].train]


def test_held_out_items_of_another_distribution() -> None:
    (task,) = skill_tasks("largest", train_items=20, test_items=20, shift=True)
    assert max(max(numbers(str(item.question))) for item in task.train if isinstance(item, Completion)) < 100
    assert max(max(numbers(str(item.question))) for item in task.test if isinstance(item, Completion)) > 100
    assert {item.id.split("/")[1] for item in task.test} == {"shifted"}


def skill_tasks(*names: str, **settings: object) -> list[Task]:
    data = DataConfig(source="skills", tasks=names, **{"test_items": 10, **settings})  # type: ignore[arg-type]
    return tasks_of(data, source_of(data, lambda message: None))


# --- formats ------------------------------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
CASES = {
    "completion": ({"prompt": "2 + 2 =", "completion": " 4"}, "2 + 2 =", " 4"),
    "completion, turns": (
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        (Message("user", "hi"),),
        (Message("assistant", "ho"),),
    ),
    "messages": ({"messages": TURNS}, (), (Message("user", "hi"), Message("assistant", "ho"))),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        (),
        (Message("user", "hi"), Message("assistant", "ho")),
    ),
    "text": ({"text": "all of it"}, "", "all of it"),
    "alpaca": (
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2, 2\n\n### Response:\n",
        "4",
    ),
    "trace": ({"prompt": "q", "answer": "a"}, "q", "a"),
    "cl_benchmark": ({"sentence": "good film", "label": "positive"}, "good film\nAnswer:", " positive"),
}


def write(folder: Path, definitions: str, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    (folder / "own.yaml").write_text(definitions, encoding="utf-8")
    return folder / "own.yaml"


def read(file: Path, name: str = "own", **settings: object) -> Task:
    data = DataConfig(definitions=str(file), tasks=(name,), **settings)  # type: ignore[arg-type]
    return tasks_of(data, source_of(data, lambda message: None))[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_every_format_is_read(tmp_path: Path, case: str, suffix: str) -> None:
    record, prompt, completion = CASES[case]
    records = [record, {**record, **{key: "other" for key, value in record.items() if isinstance(value, str)}}]
    if isinstance(next(iter(record.values())), list):
        key = next(iter(record))
        records[1] = {**record, key: [*record[key], *record[key]]}  # type: ignore[misc]
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        lines = [json.dumps(r) for r in records]
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{', '.join(lines)}]")
    definition = f"own: {{path: x.{suffix}, format: {case.partition(',')[0]}}}"
    task = read(write(tmp_path, definition), train_items=1, test_items=1)
    (found,) = [item for item in (*task.train, *task.test) if item.id.endswith("/0")]
    assert isinstance(found, Completion)
    assert (found.prompt, found.completion, found.subject) == (prompt, completion, "own")


def test_a_template_puts_the_prompt(tmp_path: Path) -> None:
    records = "".join(json.dumps({"q": f"{n} + 1", "a": f" {n + 1}", "hint": "count"}) + "\n" for n in range(4))
    definition = """own:
  path: x.jsonl
  format: completion
  columns: {prompt: q, completion: a}
  prompt: {template: "({hint}) {prompt} ="}
"""
    task = read(write(tmp_path, definition, x_jsonl=records), train_items=2, test_items=2)
    assert {item.question for item in task.train} <= {f"(count) {n} + 1 =" for n in range(4)}


def test_folders_of_published_benchmarks_keep_their_splits(tmp_path: Path) -> None:
    """TRACE has train, eval and test, O-LoRA's CL_Benchmark train, dev, test and labels: test is what is held out."""
    for name, make in (
        ("trace", lambda split, n: {"prompt": f"{split} {n}", "answer": "a"}),
        ("cl_benchmark", lambda split, n: {"sentence": f"{split} {n}", "label": "good"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for split in ("train", "eval" if name == "trace" else "dev", "test"):
            (folder / f"{split}.json").write_text(json.dumps([make(split, n) for n in range(3)]))
    (tmp_path / "cl_benchmark" / "labels.json").write_text('["good", "bad"]')
    file = write(tmp_path, "one: {path: trace, format: trace}\ntwo: {path: cl_benchmark, format: cl_benchmark}\n")
    one, two = (read(file, name, train_items=None, test_items=None) for name in ("one", "two"))
    assert {item.question for item in one.train} == {f"train {n}" for n in range(3)}
    assert {item.question for item in one.test} == {f"test {n}" for n in range(3)}
    assert {item.id for item in two.test} == {f"two/test/{n}" for n in range(3)}
    assert two.train[0].question.startswith("Option: good, bad \ntrain ")


BAD = {
    'own: {path: x.jsonl, format: completion}|{"prompt": "a"}': "has no column 'completion' but prompt; set own.columns",
    'own: {path: x.jsonl, format: completion}|{"prompt": "a", "completion": ""}': "completion must be a text, is ''",
    'own: {path: x.jsonl, format: completion}|{"prompt": "a", "completion": "  "}': "the completion must be a text",
    'own: {path: x.jsonl, format: completion}|{"prompt": "a", "completion": 4}': "completion must be a text, is 4",
    'own: {path: x.jsonl, format: completion}|{"prompt": "a", "completion": null}': "completion must be a text, is None",
    'own: {path: x.jsonl, format: completion}|{"prompt": [], "completion": "a"}': "both be text or both be messages",
    'own: {path: x.jsonl, format: completion}|{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}': "both",
    'own: {path: x.jsonl, format: messages}|{"messages": "hi"}': "must be a list of objects with role and content",
    'own: {path: x.jsonl, format: messages}|{"messages": []}': "must be a list of objects with role and content",
    'own: {path: x.jsonl, format: messages}|{"messages": [{"role": "user"}]}': "every message must have role and content",
    'own: {path: x.jsonl, format: messages}|{"messages": [{"role": "user", "content": "hi"}]}': "last message must be the",
    'own: {path: x.jsonl, format: messages}|{"messages": [{"role": "assistant", "content": ""}]}': "must hold a text",
    'own: {path: x.jsonl, format: sharegpt}|{"conversations": [{"role": "a", "content": "b"}]}': "must have from and value",
    'own: {path: x.jsonl, format: text}|{"text": null}': "the text must be a text",
    'own: {path: x.jsonl, format: alpaca}|{"instruction": "a", "input": 3, "output": "b"}': "the input must be a text",
    'own: {path: x.jsonl, format: trace}|{"prompt": "a"}': "has no column 'answer'",
    'own: {path: x.jsonl, format: nothing}|{"prompt": "a"}': "own.format must be one of multiple_choice, alpaca",
    'own: {path: x.jsonl, format: text, answers: index}|{"text": "a"}': "own.answers has no meaning with own.format=text",
    'own: {path: x.jsonl, format: text, columns: {question: q}}|{"text": "a"}': "own.columns.question is not a field",
    'own: {path: x.jsonl, format: text, prompt: {question: q}}|{"text": "a"}': "own.prompt.question is not a field",
    'own: {path: x.jsonl, format: completion, prompt: {template: "{no}"}}|{"prompt": "a", "completion": "b"}': "column 'no'",
    'own: {path: x.jsonl, format: messages, prompt: {template: "{prompt}"}}|{"messages": [{"role": "assistant", "content": '
    '"a"}]}': "is for prompts that are text",
    "own: {path: x.json, format: text}|{}": "must be a list of JSON objects",
    "own: {path: x.parquet, format: text}|no": "not a parquet file that can be read",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_malformed_data_are_one_clear_line(tmp_path: Path, case: str) -> None:
    definition, _, content = case.partition("|")
    name = re.findall(r"x\.(\w+)", definition)[0]
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, definition, **{f"x_{name}": content}))
    assert BAD[case] in str(caught.value)
    assert "\n" not in str(caught.value)


# --- tokens -------------------------------------------------------------------------------------------------------------


def test_what_is_learnt_of_every_kind() -> None:
    tokenizer = llama2_tokenizer(pad_token="<unk>")
    tokenizer.chat_template = CHAT
    turns = (Message("user", "u"), Message("assistant", "ab"), Message("user", "v"), Message("assistant", "c"))
    kinds = {
        "text after a prompt": (Completion("s/t/0", "s", "q:", "xy"), "xy</s>"),
        "a text": (Completion("s/t/1", "s", "", "xyz"), "▁xyz</s>"),
        "turns after a prompt": (Completion("s/t/2", "s", turns[:1], turns[1:2]), "ab</s>"),
        "the assistant's turns": (Completion("s/t/3", "s", (), turns), "ab</s>c</s>"),
    }
    for what, (item, learnt) in kinds.items():
        (encoded,) = encode(tokenizer, [item], {}, 512)
        assert "".join(tokenizer.convert_ids_to_tokens(encoded.targets)) == learnt, what
        inputs = [*encoded.input_ids, encoded.targets[-1]]
        assert [inputs[place + 1] for place in encoded.places] == list(encoded.targets), what


def test_a_completion_is_never_cut_and_what_is_cut_is_said() -> None:
    tokenizer = llama2_tokenizer(pad_token="<unk>")
    item = Completion("s/t/0", "s", "abcdefgh", "xy")
    (whole,) = encode(tokenizer, [item], {}, 512)
    (cut,) = encode(tokenizer, [item], {}, len(whole.input_ids) - 2)
    assert (whole.truncated, cut.truncated) == (False, True)
    assert cut.targets == whole.targets
    assert cut.input_ids[0] == tokenizer.bos_token_id
    assert cut.input_ids[1:] == whole.input_ids[4:]
    with pytest.raises(UserError, match=r"a completion is never cut.*needs data.max_tokens=4 or more, was 3"):
        encode(tokenizer, [item], {}, 3)


def test_worked_examples_stand_before_a_text() -> None:
    tokenizer = llama2_tokenizer(pad_token="<unk>")
    shot, item = Completion("s/t/0", "s", "p", "x"), Completion("s/t/1", "s", "q", "y")
    (found,) = encode(tokenizer, [item], {"s": (shot,)}, 512)
    assert list(found.input_ids) == tokenizer("px\n\nqy")["input_ids"]
    (without,) = encode(tokenizer, [item], {"s": (shot,)}, 6)
    assert (without.shots_dropped, without.truncated) == (1, False)
    turns = Completion("s/t/2", "s", (Message("user", "u"),), (Message("assistant", "a"),))
    with pytest.raises(UserError, match="worked examples are for prompts that are text"):
        encode(tokenizer, [turns], {"s": (shot,)}, 512)


def test_templates_that_fail_or_change_what_was_said_are_refused() -> None:
    tokenizer = llama2_tokenizer(pad_token="<unk>")
    turns = Completion("s/t/0", "s", (Message("user", "u"),), (Message("assistant", "a"),))
    for template, complaint in (
        (None, "has no chat template"),
        ("{{ raise_exception('no systems') }}", "cannot be filled with its messages: no systems"),
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "must only add tokens"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=complaint):
            encode(tokenizer, [turns], {}, 512)
    with pytest.raises(UserError, match="special tokens only"):
        encode(tokenizer, [Completion("s/t/1", "s", "q", "</s>")], {}, 512)
