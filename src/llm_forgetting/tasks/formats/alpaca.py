"""Alpaca's `instruction`, `input` (may be empty) and `output`, put as Stanford Alpaca puts them (Taori et al. 2023)."""

from llm_forgetting.tasks.completion import Text
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat
from llm_forgetting.tasks.records import RecordLayout, cell_of, text_of

_TASK = "Below is an instruction that describes a task"
_ASKED = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
_CUE = "\n\n### Response:\n"


def _read(record: Record, layout: RecordLayout, where: str) -> tuple[Text, Text]:
    instruction = text_of(cell_of(record, "instruction", layout, where), "instruction", where)
    context = text_of(record.get(layout.column("input")) or "", "input", where, may_be_empty=True)
    output = text_of(cell_of(record, "output", layout, where), "output", where)
    if context:
        further = (
            f", paired with an input that provides further context. {_ASKED}{instruction}\n\n### Input:\n{context}"
        )
    else:
        further = f". {_ASKED}{instruction}"
    return f"{_TASK}{further}{_CUE}", output


FORMAT = RecordFormat(("instruction", "input", "output", "subject"), _read)
