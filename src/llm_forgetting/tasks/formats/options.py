"""`question`, `choices`, `answer` as in multiple choice, with options that are texts: the right one is learnt as a completion.

Every option is scored by its likelihood after the prompt. The options are in the prompt only where a template puts them there.
"""

import dataclasses

from llm_forgetting.errors import UserError
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat, put
from llm_forgetting.tasks.prompt_format import MMLU_FORMAT
from llm_forgetting.tasks.records import COLUMNS, RecordLayout, question_of_record


def _item(record: Record, layout: RecordLayout, where: str, item_id: str, subject: str) -> Completion:
    plain = dataclasses.replace(layout, prompt=MMLU_FORMAT)
    question = question_of_record(record, plain, where, item_id, subject)
    prompt = put(question.question, record, layout, where, subject)
    right = question.choices[question.answer]
    try:
        return Completion(item_id, subject, prompt, f" {right}", layout.scoring, question.choices)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


FORMAT = RecordFormat(COLUMNS, item=_item, options=True)
