"""`prompt` and `completion`, both text or both messages: TRL's format."""

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.completion import Text
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat, turns
from llm_forgetting.tasks.records import RecordLayout, cell_of, text_of


def _read(record: Record, layout: RecordLayout, where: str) -> tuple[Text, Text]:
    prompt, completion = (cell_of(record, name, layout, where) for name in ("prompt", "completion"))
    if isinstance(prompt, list) != isinstance(completion, list):
        raise UserError(f"{where}: prompt and completion must both be text or both be messages, only one is a list")
    if isinstance(prompt, list):
        return turns(prompt, where), turns(completion, where)
    return text_of(prompt, "prompt", where, may_be_empty=True), text_of(completion, "completion", where)


FORMAT = RecordFormat(("prompt", "completion", "subject"), _read)
