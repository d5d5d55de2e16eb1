"""Options and generated answers against lm-evaluation-harness itself, on local items: every sample equal."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import load

from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.generation import Written
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import Chosen, score_tasks
from llm_forgetting.tasks.definitions import open_defined
from llm_forgetting.tasks.sources import open_source
from llm_forgetting.tasks.task import AnyItem

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

LETTERS, TEXTS, SUMS = "letters", "texts", "sums"
PATTERN = r"#### (\-?[0-9\.\,]+)"
OWN = """
letters: {path: letters.jsonl}
texts: {path: texts.jsonl, format: options, prompt: {template: "Question: {prompt}\\nAnswer:"}}
normalised: {path: texts.jsonl, format: options, prompt: {template: "Question: {prompt}\\nAnswer:"},
             score: {by: likelihood_per_character}}
sums: {path: sums.jsonl, format: completion, prompt: {template: "Question: {prompt}\\nAnswer:"},
       score: {answer: '#### (\\-?[0-9\\.\\,]+)', until: ["Question:"], max_new_tokens: 20}}
"""
MMLU = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"


def rows() -> dict[str, list[dict[str, Any]]]:
    words = ("oak", "elm", "the birch", "ash", "hazel nut", "rowan", "willow", "yew")
    drawn = np.random.default_rng(0)
    questions = [
        {"question": f"{n} or {word}?", "choices": drawn.permutation(words)[:4].tolist(), "answer": n % 4}
        for n, word in enumerate(words)
    ]
    sums = [{"prompt": f"{a} + {b}?", "completion": f" {a + b}\n#### {a + b}"} for a in (2, 4, 7) for b in (1, 5)]
    return {LETTERS: questions, TEXTS: questions, SUMS: sums}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[AnyItem, ...]]:
    folder = tmp_path_factory.mktemp("parity")
    for name, found in rows().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "own.yaml").write_text(OWN)
    names = (LETTERS, TEXTS, "normalised", SUMS)
    source = open_defined(folder / "own.yaml", lambda: open_source(source="synthetic"), print, names)
    return {name: source.pool(name, subjects).rows for name, subjects in source.resolve(names)}


@pytest.fixture(scope="module")
def model(llama_folder: Path, tasks: dict[str, tuple[AnyItem, ...]]) -> LanguageModel:
    """Trained until it knows some of the sums."""
    learner = load(llama_folder, rank=8, alpha=32.0)
    learnt = encode(learner.tokenizer, tasks[SUMS][:3], {}, 400)
    parameters = [parameter for parameter in learner.peft_model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=0.003)
    for _ in range(120):
        optimiser.zero_grad()
        answer_losses(learner, learnt).mean().backward()
        optimiser.step()
    return learner


def harness(model: LanguageModel) -> dict[str, list[dict[str, Any]]]:
    """The samples of the harness's own evaluation, by task, in the order of the rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

    def task(name: str, **config: Any) -> Any:
        found = rows()[name]
        return ConfigurableTask(
            config={
                "task": name, "test_split": "test", "num_fewshot": 0, **config,
                "custom_dataset": lambda **options: {"test": Dataset.from_list(found)},
            }
        )  # fmt: skip

    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    likelihood = {"output_type": "multiple_choice", "doc_to_target": "answer", "metric_list": metrics}
    description = "The following are multiple choice questions (with answers) about letters.\n\n"
    made = {
        LETTERS: task(
            LETTERS, **likelihood, doc_to_text=MMLU, doc_to_choice=["A", "B", "C", "D"], description=description
        ),
        TEXTS: task(TEXTS, **likelihood, doc_to_text="Question: {{question}}\nAnswer:", doc_to_choice="choices"),
        SUMS: task(
            SUMS,
            output_type="generate_until",
            doc_to_text="Question: {{prompt}}\nAnswer:",
            doc_to_target="{{completion}}",
            generation_kwargs={"until": ["Question:"], "do_sample": False, "max_gen_toks": 20},
            metric_list=[
                {
                    "metric": "exact_match", "aggregation": "mean", "higher_is_better": True,
                    "regexes_to_ignore": ["(?s).*#### "],
                }
            ],
            filter_list=[
                {
                    "name": "strict-match",
                    "filter": [{"function": "regex", "regex_pattern": PATTERN}, {"function": "take_first"}],
                }
            ],
        ),
    }  # fmt: skip
    wrapped = HFLM(pretrained=model.peft_model, tokenizer=model.tokenizer, batch_size=3, max_length=400)
    found: Any = evaluate(wrapped, made, bootstrap_iters=0, log_samples=True)
    return {name: sorted(found["samples"][name], key=lambda sample: sample["doc_id"]) for name in made}


def test_every_sample_is_the_harnesss(model: LanguageModel, tasks: dict[str, tuple[AnyItem, ...]]) -> None:
    theirs = harness(model)
    encoded = {name: encode(model.tokenizer, items, {}, 400) for name, items in tasks.items()}
    ours = dict(zip(encoded, score_tasks(model, list(encoded.values()), 4), strict=True))

    letters = ours[LETTERS]
    for n, sample in enumerate(theirs[LETTERS]):
        assert letters.log_likelihoods[n] == pytest.approx([reply[0] for reply in sample["filtered_resps"]], abs=2e-5)
        assert bool(letters.correct[n]) == bool(sample["acc"])

    for name, measure in ((TEXTS, "acc"), ("normalised", "acc_norm")):
        judged = ours[name].judged
        assert judged is not None
        for found, sample in zip(judged, theirs[TEXTS], strict=True):
            assert isinstance(found, Chosen)
            expected = [reply[0] for reply in sample["filtered_resps"]]
            assert found.log_likelihoods == pytest.approx(expected, abs=5e-5)
            assert (found.acc, found.acc_norm) == (bool(sample["acc"]), bool(sample["acc_norm"]))
            assert found.right == bool(sample[measure])
    assert {sample["acc"] for sample in theirs[TEXTS]} == {0.0, 1.0}
    assert any(sample["acc"] != sample["acc_norm"] for sample in theirs[TEXTS])

    written = ours[SUMS].judged
    assert written is not None
    for answer, sample in zip(written, theirs[SUMS], strict=True):
        assert isinstance(answer, Written)
        assert answer.text == sample["resps"][0][0]
        assert (answer.answer or "[invalid]") == sample["filtered_resps"][0]
        assert answer.right == bool(sample["exact_match"])
    assert 0 < sum(sample["exact_match"] for sample in theirs[SUMS]) < len(written)
