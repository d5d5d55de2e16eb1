"""ShareGPT's `conversations`, a list of turns with `from` (human, gpt) and `value`: the model's are learnt."""

from llm_forgetting.tasks.completion import Text
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat, turns
from llm_forgetting.tasks.records import RecordLayout, cell_of


def _read(record: Record, layout: RecordLayout, where: str) -> tuple[Text, Text]:
    return (), turns(cell_of(record, "conversations", layout, where), where, "from", "value")


FORMAT = RecordFormat(("conversations", "subject"), _read)
