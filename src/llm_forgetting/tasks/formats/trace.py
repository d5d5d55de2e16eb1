"""`prompt` and `answer`, as in the files of the benchmark TRACE (Wang et al. 2023)."""

from llm_forgetting.tasks.completion import Text
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat
from llm_forgetting.tasks.records import RecordLayout, cell_of, text_of


def _read(record: Record, layout: RecordLayout, where: str) -> tuple[Text, Text]:
    prompt = text_of(cell_of(record, "prompt", layout, where), "prompt", where, may_be_empty=True)
    return prompt, text_of(cell_of(record, "answer", layout, where), "answer", where)


FORMAT = RecordFormat(("prompt", "answer", "subject"), _read)
