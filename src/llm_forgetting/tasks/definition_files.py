"""Reading a YAML file of task definitions: every mistake in it ends in one line that says what must hold."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_forgetting.errors import UserError
from llm_forgetting.files import read_yaml
from llm_forgetting.tasks import mmlu
from llm_forgetting.tasks.formats import FORMATS, LABELLED, MULTIPLE_CHOICE
from llm_forgetting.tasks.prompt_format import MMLU_FORMAT, PromptFormat, names_in
from llm_forgetting.tasks.records import ANSWER_KINDS, RecordLayout
from llm_forgetting.tasks.scoring import IGNORED, LAST_LINE, NUMBER, TEACHER_FORCED, TITLES, Scoring
from llm_forgetting.tasks.sources import KINDS
from llm_forgetting.tasks.task import LETTERS

_FIELDS = (
    "source", "path", "hub_config", "split", "subjects", "format", "columns", "choices", "answers", "options", "prompt", "score"
)  # fmt: skip
_PROMPT_FIELDS = ("description", "question", "answer")
_MOST_TOKENS = 100_000
_SCORE_FIELDS = ("by", "answer", "ignore", "until", "max_new_tokens", "rouge")
# The sources that a field has a meaning for; the others of _FIELDS have one for all.
_HUB, _COLUMNS = ([name for name, kind in KINDS.items() if getattr(kind, what)] for what in ("hub", "columns"))
_ONLY_FOR = {
    "path": [name for name, kind in KINDS.items() if kind.path != "none"],
    **dict.fromkeys(("hub_config", "split"), _HUB),
    **dict.fromkeys(("format", "columns", "choices", "answers"), _COLUMNS),
}


@dataclass(frozen=True)
class Definition:
    """One task: the set it is drawn from (all of it, or some `subjects` and `splits`), and the layout of its records."""

    name: str
    source: str
    path: str | None
    hub_config: str | None
    splits: tuple[str, ...]
    subjects: tuple[str, ...]
    layout: RecordLayout


def read_definitions(file: Path) -> dict[str, Definition]:
    """The tasks that `file` defines, by name, in the order of the file. Only the file itself is read, no data."""
    content = _content(file)
    definitions: dict[str, Definition] = {}
    for name, fields in content.items():
        try:
            definition = _definition(name, fields)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        if definition.name in definitions:
            raise UserError(f"{file}: every task needs a name of its own; {definition.name} is defined twice")
        definitions[definition.name] = definition
    return definitions


def _content(file: Path) -> dict[str, Any]:
    content = read_yaml(file, "data.definitions", texts=True)
    if not content:
        raise UserError(f"{file} defines no task; it must map names to fields such as `path: questions.jsonl`")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{file} must map names of tasks to their fields, was {str(content)[:40]!r}")
    own = content.get("definitions")
    if isinstance(own, dict) and not own.keys() & set(_FIELDS):
        return own  # a configuration that defines its tasks itself
    return content


def _definition(name: str, fields: object) -> Definition:
    spelled = mmlu.spelled(name)
    if not spelled.replace("_", "").isalnum():
        raise UserError(f"a task's name must be made of letters, digits and underscores, was {name!r}")
    given = _mapping(fields, spelled, _FIELDS)
    source = _text(given, "source", spelled) or "local"
    if source not in KINDS:
        raise UserError(f"{spelled}.source must be one of {', '.join(KINDS)}, was {source!r}")
    for key in given:
        if source not in _ONLY_FOR.get(key, KINDS):
            raise UserError(f"{spelled}.{key} has no meaning with {spelled}.source={source}; leave it out")
    path = _text(given, "path", spelled)
    if path is None and source in _ONLY_FOR["path"]:
        raise UserError(f"{spelled}.path must name the file, folder or hub data set, was not given")
    return Definition(
        spelled,
        source,
        path,
        _text(given, "hub_config", spelled),
        _texts(given, "split", spelled, may_be_one=True),
        _texts(given, "subjects", spelled, may_be_one=True),
        _layout(spelled, given),
    )


def _mapping(fields: object, setting: str, known: Sequence[str]) -> Mapping[str, object]:
    if not isinstance(fields, dict):
        raise UserError(f"{setting} must hold fields such as {known[0]}, was {str(fields)[:40]!r}")
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"{setting}.{key} is not a field; {hint}")
    return fields


def _text(fields: Mapping[str, object], key: str, setting: str) -> str | None:
    value = fields.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise UserError(f"{setting}.{key} must be a text, was {str(value)[:40]!r}; or leave it out")
    return value


def _texts(fields: Mapping[str, Any], key: str, setting: str, *, may_be_one: bool = False) -> tuple[str, ...]:
    value = fields.get(key, [])
    if may_be_one and isinstance(value, str):
        value = [value]
    texts = isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)
    if not texts or (key in fields and not value):
        raise UserError(f"{setting}.{key} must be a list of texts, was {str(value)[:40]!r}; or leave it out")
    if len({text.strip().casefold() for text in value}) < len(value):
        raise UserError(f"{setting}.{key} must not say the same twice, was {', '.join(value)[:60]}")
    return tuple(value)


def _layout(name: str, given: Mapping[str, Any]) -> RecordLayout:
    format_name = _text(given, "format", name) or MULTIPLE_CHOICE
    if format_name not in FORMATS:
        raise UserError(f"{name}.format must be one of {', '.join(FORMATS)}, was {format_name!r}")
    named = _mapping(given.get("columns", {}), f"{name}.columns", FORMATS[format_name].columns)
    columns = {key: ",".join(_texts(named, key, f"{name}.columns", may_be_one=True)) for key in named}
    for key, value in named.items():
        if key != "choices" and not isinstance(value, str):
            raise UserError(f"{name}.columns.{key} must name one column, was {str(value)[:40]!r}")
    choices = _texts(given, "choices", name)
    if not FORMATS[format_name].options:
        return _completion_layout(name, given, format_name, columns, choices)
    if format_name == MULTIPLE_CHOICE and "score" in given and given.get("source", "local") in _COLUMNS:
        raise UserError(
            f"{name}.score is for completions, and has no meaning with {name}.format={format_name}; leave it out"
        )
    if choices and "choices" in columns:
        raise UserError(f"{name}.choices are the options of every row; leave out {name}.columns.choices, or them")
    if choices and not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{name}.choices must be 2 to {len(LETTERS)} options, are {len(choices)}")
    options = _count(given, "options", name)
    if choices and options not in (None, len(choices)):
        raise UserError(f"{name}.options must be {len(choices)}, as many as {name}.choices, was {options}")
    answers = _answers(given, name, len(choices) or options)
    layout = RecordLayout(columns, choices, answers, options, name, setting=name, format=format_name)
    if format_name == MULTIPLE_CHOICE:
        return replace(layout, prompt=_prompt(given.get("prompt", {}), name), scoring=_scoring(given, name))
    scoring = _scoring(given, name) if "score" in given else Scoring("likelihood")
    return replace(layout, template=_template(given, name), scoring=scoring)


def _completion_layout(
    name: str, given: Mapping[str, Any], format_name: str, columns: Mapping[str, str], choices: tuple[str, ...]
) -> RecordLayout:
    """Of records that hold prompts with completions; `prompt` may be their template."""
    for key in ("answers", "options", *(["choices"] if format_name != LABELLED else [])):
        if key in given:
            raise UserError(f"{name}.{key} has no meaning with {name}.format={format_name}; leave it out")
    template, scoring = _template(given, name), _scoring(given, name)
    if scoring.of_options:
        raise UserError(
            f"{name}.score.by={scoring.by} needs {name}.format=options, which is {format_name}; change one of them"
        )
    if scoring.by == "generation" and format_name == "text":
        raise UserError(f"{name}.score.by=generation needs a prompt, and {name}.format=text has none; leave it out")
    return RecordLayout(
        columns, choices, subject=name, setting=name, format=format_name, template=template, scoring=scoring
    )


def _template(given: Mapping[str, Any], name: str) -> str | None:
    """How the prompt of a completion is put."""
    template = _mapping(given.get("prompt", {}), f"{name}.prompt", ("template",)).get("template")
    if template is None:
        return None
    if not isinstance(template, str) or not template.strip():
        raise UserError(f"{name}.prompt.template must be a text, was {str(template)[:40]!r}; or leave it out")
    _require_names(template, f"{name}.prompt.template", lambda used: True, "columns")
    return template


def _scoring(given: Mapping[str, Any], name: str) -> Scoring:
    if "score" not in given:
        return TEACHER_FORCED
    setting = f"{name}.score"
    fields = _mapping(given["score"], setting, _SCORE_FIELDS)
    named = _text(fields, "by", setting) or "generation"
    by = next((kind for kind in TITLES if kind == named), None)
    if by is None:
        raise UserError(f"{setting}.by must be one of {', '.join(TITLES)}, was {named!r}")
    if by != "generation" and len(fields) > 1:
        other = next(key for key in fields if key != "by")
        raise UserError(f"{setting}.{other} needs {setting}.by=generation, which is {by}; change one of them")
    ignore = _texts(fields, "ignore", setting, may_be_one=True)
    if unknown := [word for word in ignore if word not in IGNORED]:
        raise UserError(f"{setting}.ignore may name {', '.join(IGNORED)}, named {unknown[0]!r}")
    rouge = _text(fields, "rouge", setting) or "false"
    if rouge not in ("true", "false"):
        raise UserError(f"{setting}.rouge must be true or false, was {rouge!r}")
    if rouge == "true" and find_spec("rouge_score") is None:
        raise UserError(
            f"{setting}.rouge needs the package rouge_score: pip install 'llm-forgetting[rouge]', or leave it out"
        )
    until = _texts(fields, "until", setting, may_be_one=True)
    return Scoring(by, _pattern(fields, setting), ignore, until, _tokens(fields, setting), rouge == "true")


def _pattern(fields: Mapping[str, object], setting: str) -> str | None:
    pattern = _text(fields, "answer", setting)
    if pattern is None or pattern in (NUMBER, LAST_LINE):
        return pattern
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"{setting}.answer is no regular expression ({error}), was {pattern[:60]!r}") from error
    if groups != 1:
        raise UserError(
            f"{setting}.answer must be {NUMBER}, {LAST_LINE} or a regular expression with one group, which is the answer; "
            f"{pattern[:60]!r} has {groups}; (?:...) is no group"
        )
    return pattern


def _tokens(fields: Mapping[str, object], setting: str) -> int | None:
    value = fields.get("max_new_tokens")
    if value is None:
        return None
    if not isinstance(value, str) or not value.isdecimal() or not 1 <= int(value) <= _MOST_TOKENS:
        raise UserError(
            f"{setting}.max_new_tokens must be a whole number from 1 to {_MOST_TOKENS}, was {str(value)[:40]!r}"
        )
    return int(value)


def _count(given: Mapping[str, object], key: str, name: str) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or value not in map(str, range(2, len(LETTERS) + 1)):
        raise UserError(f"{name}.{key} must be a whole number from 2 to {len(LETTERS)}, was {str(value)[:40]!r}")
    return int(value)


def _answers(given: Mapping[str, object], name: str, options: int | None) -> str | tuple[str, ...] | None:
    value = given.get("answers")
    if isinstance(value, str):
        if value not in ANSWER_KINDS:
            raise UserError(
                f"{name}.answers must be {', '.join(ANSWER_KINDS)}, or the list of what the answer says for each option, "
                f"was {value!r}"
            )
        return value
    answers = _texts(given, "answers", name)
    if answers and options is not None and len(answers) != options:
        raise UserError(f"{name}.answers must say one thing for each of {options} options, says {len(answers)}")
    return answers or None


def _prompt(fields: object, name: str) -> PromptFormat:
    given = _mapping(fields, f"{name}.prompt", _PROMPT_FIELDS)
    texts = {}
    for key, value in given.items():
        if not isinstance(value, str) or not (value.strip() or key == "description"):
            raise UserError(f"{name}.prompt.{key} must be a text, was {str(value)[:40]!r}; or leave it out")
        texts[key] = value.strip()
    prompt = PromptFormat(**texts)
    _require_names(prompt.description, f"{name}.prompt.description", lambda used: used == "subject", "{subject}")
    _require_names(prompt.question, f"{name}.prompt.question", lambda used: True, "columns")
    _require_names(prompt.answer, f"{name}.prompt.answer", lambda used: False, "nothing")
    if prompt.question != MMLU_FORMAT.question and not names_in(prompt.question):
        raise UserError(f"{name}.prompt.question must name a column such as {{question}}, was {prompt.question[:40]!r}")
    return prompt


def _require_names(template: str, setting: str, allowed: Callable[[str], bool], what: str) -> None:
    try:
        wrong = [used for used in names_in(template) if not allowed(used)]
    except ValueError as error:
        raise UserError(f"{setting} is no template ({error}), was {template[:60]!r}") from error
    if wrong:
        raise UserError(f"{setting} may name {what} in braces, named {wrong[0]}; {{{{ and }}}} stand for braces")
