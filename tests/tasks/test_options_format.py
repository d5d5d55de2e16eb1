"""`format: options`: items whose options are texts, how they are learnt, chosen and recorded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import load

from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.item_records import item_records
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.scoring import passes, score_tasks
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.definitions import list_defined, open_defined
from llm_forgetting.tasks.scoring import Scoring
from llm_forgetting.tasks.sources import open_source
from llm_forgetting.tasks.task import Task

ROWS = [
    {"question": "Which tree?", "choices": ["oak", "the old birch", "ash"], "answer": 1},
    {"question": "And now?", "choices": ["elm", "yew"], "answer": "yew"},
]


def opened(folder: Path, fields: str = "", rows: object = None) -> tuple[Completion, ...]:
    found = ROWS if rows is None else rows
    assert isinstance(found, list)
    (folder / "trees.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "own.yaml").write_text(f"trees: {{path: trees.jsonl, format: options{fields}}}\n")
    source = open_defined(folder / "own.yaml", lambda: open_source(source="synthetic"), print, ["trees"])
    ((name, subjects),) = source.resolve(["trees"])
    return tuple(item for item in source.pool(name, subjects).rows if isinstance(item, Completion))


def test_the_right_text_is_learnt_after_the_prompt(tmp_path: Path) -> None:
    first, second = opened(tmp_path, ', prompt: {template: "Question: {prompt}\\nAnswer:"}')
    assert (first.prompt, first.completion) == ("Question: Which tree?\nAnswer:", " the old birch")
    assert (first.options, first.right) == (("oak", "the old birch", "ash"), 1)
    assert (second.completion, second.right) == (" yew", 1)
    assert first.scoring == Scoring("likelihood")
    assert (
        opened(tmp_path, ", score: {by: likelihood_per_character}")[0].scoring.title
        == "likeliest option per character (acc_norm)"
    )
    assert Task("trees", (), (first,), (second,)).options == (2, 3)
    (listed,) = list_defined(tmp_path / "own.yaml", print)
    assert listed.options == "2 to 3"
    given = [{"question": "Which?", "answer": "no"}]
    assert opened(tmp_path, ", choices: [yes, no], answers: text", given)[0].options == ("yes", "no")


@pytest.mark.usefixtures("one_thread")
def test_likelihoods_are_those_of_plain_transformers(llama_folder: Path, tmp_path: Path) -> None:
    model = load(llama_folder)
    items = opened(tmp_path)
    encoded = encode(model.tokenizer, items, {}, 100)
    assert passes([encoded]) == 2 + 5
    (scored,) = score_tasks(model, [encoded], 2)
    records = item_records("initial", "trees", "test", encoded, scored, decode=model.decode)
    for item, record in zip(items, records, strict=True):
        sums = []
        for option in item.options:
            before = model.tokenizer(item.prompt)["input_ids"]
            ids = model.tokenizer(f"{item.prompt} {option}")["input_ids"]
            with torch.no_grad():
                log_p = model.peft_model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
            sums.append(sum(float(log_p[place - 1, ids[place]]) for place in range(len(before), len(ids))))
        assert record.log_likelihoods == pytest.approx(sums, abs=1e-4)
        assert record.acc == (int(np.argmax(sums)) == item.right) == record.correct
        per_character = np.array(sums) / [len(option) for option in item.options]
        assert record.acc_norm == (int(np.argmax(per_character)) == item.right)
        assert record.predicted == item.options[int(np.argmax(sums))]
        assert record.answer == item.options[item.right]
    end = model.tokenizer.eos_token_id
    assert all(item.targets[-1] == end for item in encoded)
    assert all(option.targets[-1] != end for item in encoded for option in item.alternatives)


MISTAKES = {
    ", score: {by: teacher_forcing, answer: number}": "needs trees.score.by=generation",
    ", prompt: {question: x}": "trees.prompt.question is not a field",
    ", choices: [a, a]": "must not say the same twice",
}


@pytest.mark.parametrize(("fields", "said"), MISTAKES.items())
def test_a_mistake_is_one_line(tmp_path: Path, fields: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened(tmp_path, fields)


BAD_ROWS = {
    "one option": ({"question": "q", "choices": ["a"], "answer": 0}, "needs 2 to 26 options"),
    "right twice": ({"question": "q", "choices": ["a", "a"], "answer": 0}, "the right one among them once"),
    "empty": ({"question": "q", "choices": ["a", " "], "answer": 0}, "the options must be texts"),
    "none right": ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "is none of its 2 options"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_one_line_with_its_place(tmp_path: Path, kind: str) -> None:
    row, said = BAD_ROWS[kind]
    with pytest.raises(UserError, match=said) as caught:
        opened(tmp_path, rows=[*ROWS, row])
    assert "trees.jsonl, line 3" in str(caught.value)


def test_likelihoods_need_options(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2 + 2 =", "completion": " 4"}\n')
    (tmp_path / "own.yaml").write_text("sums: {path: sums.jsonl, format: completion, score: {by: likelihood}}\n")
    with pytest.raises(UserError, match=r"needs sums\.format=options"):
        list_defined(tmp_path / "own.yaml", print)
