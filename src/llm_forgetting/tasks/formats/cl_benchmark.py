r"""`sentence` and `label`, as in O-LoRA's CL_Benchmark (Wang et al. 2023), whose folders hold the labels in labels.json.

The prompt ends as there, in the options, the sentence and `Answer:`; the instruction before them is a definition's
`prompt.template`, for example "What is the topic of the following paragraph? Choose one from the option.\n{prompt}".
"""

from llm_forgetting.tasks.completion import Text
from llm_forgetting.tasks.formats.record_format import Record, RecordFormat
from llm_forgetting.tasks.records import RecordLayout, cell_of, text_of


def _read(record: Record, layout: RecordLayout, where: str) -> tuple[Text, Text]:
    sentence = text_of(cell_of(record, "sentence", layout, where), "sentence", where)
    label = text_of(cell_of(record, "label", layout, where), "label", where)
    options = f"Option: {', '.join(layout.choices)} \n" if layout.choices else ""
    return f"{options}{sentence}\nAnswer:", f" {label}"


FORMAT = RecordFormat(("sentence", "label", "subject"), _read)
