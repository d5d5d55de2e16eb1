"""YAML, read strictly: what its author cannot have meant ends in one line that says where it stands."""

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from llm_forgetting.errors import UserError
from llm_forgetting.files.codec import Json
from llm_forgetting.files.disk import is_text, read_regular

MAX_VALUES, MAX_DEPTH = 100_000, 50
_CHARACTERS = 100
"""A text counts as one value more for every so many characters."""


def read_yaml(path: Path, setting: str, *, texts: bool = False) -> Json:
    """What the file `path` holds; UserError names `setting`, what the file is wanted for, or the line of a mistake.

    Refused are a name given twice in a mapping, aliases that expand to more than MAX_VALUES values, a nesting deeper than
    MAX_DEPTH, and numbers that are not finite. `12:30`, `0x10` and dates are texts; with `texts` every value is one.
    """
    content = read_regular(path, setting)
    try:
        return load_yaml(content.decode("utf-8-sig"), _Texts if texts else _Values)
    except yaml.MarkedYAMLError as error:
        said = ", ".join(filter(None, (error.context, error.problem)))
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{path} must be YAML in UTF-8: {said}{line}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} must be YAML in UTF-8: {' '.join(str(error).split())}") from error


class _Texts(yaml.SafeLoader):
    """Every scalar is the text that it is written as: `no`, `0` and `None` are options here, not values."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- PyYAML's own way

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values, self._depth, self._sizes = 0, 0, dict[int, int]()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, with all that its aliases stand for counted."""
        before, event = self._values, self.peek_event()  # type: ignore[no-untyped-call]
        alias = isinstance(event, yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _wrong(f"must be nested at most {MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise _wrong("an alias must not stand inside what it names", event)
        if isinstance(event, yaml.ScalarEvent) and not is_text(event.value):
            raise _wrong("must be text in UTF-8 without NUL", event)
        length = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        self._values += self._sizes[id(node)] if alias else 1 + length // _CHARACTERS
        if self._values > MAX_VALUES:
            raise _wrong(f"must hold at most {MAX_VALUES:,} values, aliases expanded", event)
        self._sizes.setdefault(id(node), self._values - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping that names nothing twice."""
        node = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _wrong(f"{key.value[:40]} is there twice", key)
            seen.add(key.value)
        return node


class _Values(_Texts):
    """Scalars are null, true and false (yes and no), decimal numbers, and texts."""


_BOOL = "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"
_FLOAT = r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
for _kind, _pattern, _first in (
    ("null", "~|null|Null|NULL|", "~nN"),
    ("bool", _BOOL, "yYnNtTfFoO"),
    ("int", "[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", rf"{_FLOAT}|\.(?:nan|NaN|NAN)", "-+.0123456789"),
    ("merge", "<<", "<"),
):
    _known = [*_first, *([""] if _kind == "null" else [])]
    _Values.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _known)


def _number(loader: _Values, node: yaml.ScalarNode) -> float:
    kind = node.tag.rpartition(":")[2]
    try:
        value = int(node.value.replace("_", "")) if kind == "int" else float(loader.construct_yaml_float(node))
    except ValueError as error:
        raise _wrong(f"must be a number, was {node.value[:20]}", node) from error
    if not abs(value) <= sys.float_info.max:
        raise _wrong(f"a number must be finite, was {node.value[:20]}", node)
    return value


for _kind in ("int", "float"):
    _Texts.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def load_yaml(text: str, loader: type[_Texts] = _Values) -> Json:
    """What a YAML text holds, read as strictly as a file; yaml.YAMLError where it cannot be."""
    reader = loader(text)
    try:
        return reader.get_single_data()
    finally:
        reader.dispose()


def _wrong(problem: str, where: Any) -> yaml.MarkedYAMLError:
    """A problem at an event or node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
