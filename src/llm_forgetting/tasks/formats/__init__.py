"""Formats of records, one file each: a file here that sets `FORMAT` is a value of `format` in a definitions file."""

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from llm_forgetting.tasks.formats.record_format import RecordFormat
from llm_forgetting.tasks.records import RecordLayout, subject_of
from llm_forgetting.tasks.task import AnyItem

MULTIPLE_CHOICE, LABELLED = "multiple_choice", "cl_benchmark"
Record = Mapping[str, object]


def _formats() -> dict[str, RecordFormat]:
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "record_format"]
    return {
        name: import_module(f"{__name__}.{name}").FORMAT
        for name in sorted(names, key=lambda n: (n != MULTIPLE_CHOICE, n))
    }


FORMATS: Mapping[str, RecordFormat] = _formats()
"""Every format by its name, that of multiple choice first."""


def item_of_record(record: Record, layout: RecordLayout, where: str, default_subject: str, place: str) -> AnyItem:
    """The item of a record; `place` is the part of its id after the subject, `where` names the record in a UserError."""
    subject = subject_of(record, layout, where, default_subject)
    return FORMATS[layout.format].item_of(record, layout, where, f"{subject}/{place}", subject)
