"""Format of records: which columns they have, and what item is in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.completion import Completion, Message, Text
from llm_forgetting.tasks.prompt_format import filled, names_in
from llm_forgetting.tasks.records import RecordLayout, cell_of, text_of
from llm_forgetting.tasks.task import AnyItem

Record = Mapping[str, object]


@dataclass(frozen=True)
class RecordFormat:
    """Format of records, `FORMAT` of a file in this folder.

    Attributes:
        columns: What the columns hold; a layout may say how they are called.
        read: From (record, layout, place for messages) to prompt and completion; UserError where the record has none.
        item: Instead of `read`, for items of another kind: also gets the item's id.
        options: Whether an item has options, which a layout may give for all.
    """

    columns: tuple[str, ...]
    read: Callable[[Record, RecordLayout, str], tuple[Text, Text]] | None = None
    item: Callable[[Record, RecordLayout, str, str, str], AnyItem] | None = None
    options: bool = False

    def item_of(self, record: Record, layout: RecordLayout, where: str, item_id: str, subject: str) -> AnyItem:
        """The item of a record; `where` names the record in a UserError."""
        if self.item is not None:
            return self.item(record, layout, where, item_id, subject)
        assert self.read is not None
        prompt, completion = self.read(record, layout, where)
        try:
            return Completion(item_id, subject, put(prompt, record, layout, where, subject), completion, layout.scoring)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


def put(prompt: Text, record: Record, layout: RecordLayout, where: str, subject: str) -> Text:
    """The prompt as the layout's template has it, which may name `prompt`, `subject` and columns."""
    template = layout.template
    if template is None:
        return prompt
    if not isinstance(prompt, str):
        raise UserError(
            f"{where}: {layout.setting}.prompt.template is for prompts that are text, this one is a conversation"
        )
    values = {"prompt": prompt, "subject": subject.replace("_", " ")}
    for name in names_in(template):
        if name not in values:
            values[name] = text_of(cell_of(record, name, layout, where, name), name, where, may_be_empty=True)
    return filled(template, values)


def turns(value: object, where: str, role: str = "role", content: str = "content") -> tuple[Message, ...]:
    """Turns of a conversation as they stand in JSON: a list of objects with `role` and `content`, or under other names."""
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where}: messages must be a list of objects with {role} and {content}, are {str(value)[:50]!r}"
        )
    found = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get(role), str) or not isinstance(turn.get(content), str):
            raise UserError(
                f"{where}: every message must have {role} and {content}, both text; one is {str(turn)[:60]!r}"
            )
        found.append(Message(_ROLES.get(str(turn[role]), str(turn[role])), str(turn[content])))
    return tuple(found)


_ROLES = {"human": "user", "gpt": "assistant"}
