"""Files that are written whole or not at all, JSON with non-finite numbers, and YAML that is read strictly."""

import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema, from_json

from llm_forgetting.errors import UserError

Json = Any


def encode_json(value: Json) -> str:
    """JSON text with non-finite numbers as the strings "nan", "inf" and "-inf" (JSON has no such numbers)."""
    return json.dumps(_spelt(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _spelt(value: Json) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _spelt(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(entry) for entry in value]
    return value


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either what it held before or all of `data`, whatever happens in between."""
    partial = _temporary(path)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes away
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A scratch folder that becomes `path` when the block ends well, and vanishes when it does not.

    What is in it is on the disk before it has its name, with the rights that the umask grants.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _temporary(path)
    scratch.mkdir()
    try:
        yield scratch
        rights = scratch.stat().st_mode & 0o666
        for written in (file for file in scratch.rglob("*") if file.is_file()):
            written.chmod(rights)
            _sync(written)
        _sync(scratch)
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # where no folder can be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path, name: str = "*") -> None:
    """Remove what a killed process left in `folder` of files and folders called `name`; only for who holds its lock."""
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


Kind = TypeVar("Kind")
Extra = Literal["ignore", "forbid"]


def _is_none(value: object) -> bool:
    return value is None


OMITTED = Field(exclude_if=_is_none)
"""Metadata of an optional key: `grad_norm: Annotated[float | None, OMITTED] = None` is absent from JSON where it is
None."""


def reshaped(schema: CoreSchema, read: Callable[[Json], Json], write: Callable[[Any, Json], Json]) -> CoreSchema:
    """The core schema of a record whose JSON is not its fields: `read` turns the JSON into fields, `write` (record,
    fields) the fields into JSON. For `__get_pydantic_core_schema__` of the few records that need it.
    """

    def written(record: object, inner: Callable[[object], Json]) -> Json:
        return write(record, inner(record))

    def prepared(value: Json) -> Json:
        return read(value) if isinstance(value, Mapping) else value

    return core_schema.no_info_before_validator_function(
        prepared,
        schema,
        serialization=core_schema.wrap_serializer_function_ser_schema(written, schema=schema),
    )


_ADAPTERS: dict[object, TypeAdapter[Any]] = {}


def adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's reader and writer of a type, made once."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def from_plain(kind: type[Kind], value: Json, *, file: str = "", extra: Extra = "ignore") -> Kind:
    """The record that plain JSON values stand for; UserError names `file` (the type, if not given) and the dotted path.

    Unknown keys are ignored, or with `extra="forbid"` refused.
    """
    try:
        return adapter(kind).validate_python(value, extra=extra, by_alias=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise UserError(_said(file or _name(kind), error)) from error
    except UserError as error:  # a configuration that this version refuses
        raise UserError(f"{file or _name(kind)}: {error}") from error


def to_plain(record: object, kind: object = None) -> Json:
    """The plain JSON values of a record, non-finite numbers still as floats; `kind` where it is not simply the record's
    class (lists, mappings, generic records).
    """
    return adapter(type(record) if kind is None else kind).dump_python(record, by_alias=True)


def decode(kind: type[Kind], text: str | bytes, *, file: str = "", extra: Extra = "ignore") -> Kind:
    """The record of an artifact's text; UserError as `from_plain`, also where the text is no JSON."""
    return from_plain(kind, _parsed(text, file or _name(kind)), file=file, extra=extra)


def read_json(path: Path) -> Json:
    """The plain JSON values of a file; UserError where it cannot be read or is no JSON."""
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} must be a file that can be read, and is not ({error.strerror or error})") from error


def read(kind: type[Kind], path: Path) -> Kind:
    """The record of the artifact at `path`; UserError as `read_json` and `from_plain`."""
    return from_plain(kind, read_json(path), file=str(path))


def encode(record: object, kind: object = None) -> str:
    """The text of an artifact; `kind` as in `to_plain`."""
    return encode_json(to_plain(record, kind))


def decode_lines(kind: type[list[Kind]], text: str, *, file: str = "", extra: Extra = "ignore") -> list[Kind]:
    """The records of a file of one JSON value per line (items.jsonl); `kind` is the type of the list of them."""
    lines = text.removesuffix("\n").split("\n") if text else []
    values = [_parsed(line, f"{file or _name(kind)}, line {n}") for n, line in enumerate(lines, start=1)]
    return from_plain(kind, values, file=file, extra=extra)


def encode_lines(records: Iterable[object]) -> str:
    """One line of JSON per record."""
    return "".join(
        json.dumps(_spelt(to_plain(record)), ensure_ascii=False, allow_nan=False) + "\n" for record in records
    )


_NUMBER: JsonSchemaValue = {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]}


class _Schema(GenerateJsonSchema):
    """JSON schema of exactly what `encode` writes: every key, no other key, numbers that may be spelt."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return dict(_NUMBER)

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return {**super().dataclass_schema(schema), "additionalProperties": False}

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        return "serialization_exclude_if" not in field

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def schema_text(kind: object) -> str:
    """The JSON schema (draft 2020-12) of what `encode` writes; docstrings are its descriptions."""
    schema = adapter(kind).json_schema(mode="serialization", schema_generator=_Schema)
    shared = _tidy({"$schema": GenerateJsonSchema.schema_dialect, **schema})
    return encode_json({**shared, "$defs": {"number": _NUMBER, **shared.get("$defs", {})}})


def _tidy(schema: Json) -> Json:
    """`schema` with one definition of a number, and descriptions of one line."""
    if schema == _NUMBER:
        return {"$ref": "#/$defs/number"}
    if isinstance(schema, dict):
        tidy = {key: _tidy(value) for key, value in schema.items()}
        said = tidy.get("description")
        return {**tidy, "description": " ".join(said.split())} if isinstance(said, str) else tidy
    return [_tidy(value) for value in schema] if isinstance(schema, list) else schema


def _parsed(text: str | bytes, file: str) -> Json:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{file} must be JSON, is not: {' '.join(str(error).split())}") from error


def _name(kind: object) -> str:
    return str(getattr(kind, "__name__", kind))


def _said(file: str, error: ValidationError) -> str:
    """One line about the first problem, with the number of the others."""
    first, *others = error.errors(include_url=False, include_context=False)
    path = ".".join(map(str, first["loc"])) or "the whole"
    value = repr(first["input"])
    shown = "" if first["type"] in {"missing", "array"} or len(value) > 60 else f" (is {value})"
    more = f", and {len(others)} more" if others else ""
    return " ".join(f"{file}: {path}: {first['msg']}{shown}{more}".split())


# YAML, read strictly: what its author cannot have meant ends in one line that says where it stands.
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 2_000_000, 100_000, 50
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


def read_regular(path: Path, setting: str, kind: str = "a YAML file", most: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `most`, which must be `kind`: a pipe would be waited for without end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{setting} must be {kind}; {path} is a folder, pipe or device")
        if status.st_size > most:
            raise UserError(f"{setting} must be {kind} of at most {most:,} bytes; {path} has {status.st_size:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{setting} must be {kind}; {path} cannot be read: {error.strerror or error}") from error


def user_path(text: str) -> Path:
    """The path that `text` names, `~` being a home folder; UserError where nobody here is called so."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{text} must begin with a home folder that is known here, or be written out: {error}"
        ) from error


def is_text(text: str) -> bool:
    """Whether a text can be written: in UTF-8 (no half of a surrogate pair), and without NUL."""
    return "\0" not in text and not re.search("[\ud800-\udfff]", text)


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
