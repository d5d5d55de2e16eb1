"""`messages`, a list of turns with `role` and `content`: the assistant's are learnt."""

from llm_forgetting.tasks.completion import Text
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat, turns
from llm_forgetting.tasks.records import RecordLayout, cell_of


def _read(record: Record, layout: RecordLayout, where: str) -> tuple[Text, Text]:
    return (), turns(cell_of(record, "messages", layout, where), where)


FORMAT = RecordFormat(("messages", "subject"), _read)
