"""Questions with options, one of which is right."""

from llm_forgetting.tasks.formats.record_format import RecordFormat
from llm_forgetting.tasks.records import COLUMNS, question_of_record

FORMAT = RecordFormat(COLUMNS, item=question_of_record, options=True)
