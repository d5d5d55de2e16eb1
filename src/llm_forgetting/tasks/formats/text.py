"""`text`, all of which is learnt but the first token."""

from llm_forgetting.tasks.completion import Text
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat
from llm_forgetting.tasks.records import RecordLayout, cell_of, text_of


def _read(record: Record, layout: RecordLayout, where: str) -> tuple[Text, Text]:
    return "", text_of(cell_of(record, "text", layout, where), "text", where)


FORMAT = RecordFormat(("text", "subject"), _read)
