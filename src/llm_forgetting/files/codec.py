"""Records as JSON: reading, writing and their schema; non-finite numbers are spelt."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema, from_json

from llm_forgetting.errors import UserError
from llm_forgetting.files.elsewhere import MOST_NUMBERS, put_back, set_aside

Json = Any


def encode_json(value: Json) -> str:
    """JSON text with non-finite numbers as the strings "nan", "inf" and "-inf" (JSON has no such numbers)."""
    return json.dumps(_spelt(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _spelt(value: Json) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _spelt(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(entry) for entry in value]
    return value


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


def decode(
    kind: type[Kind],
    text: str | bytes,
    *,
    file: str = "",
    extra: Extra = "ignore",
    beside: Callable[[str], bytes] | None = None,
) -> Kind:
    """The record of an artifact's text; UserError as `from_plain`, also where the text is no JSON.

    `beside` gives the bytes of the files that hold its large arrays (see `elsewhere`).
    """
    plain = _parsed(text, file or _name(kind))
    return from_plain(kind, plain if beside is None else put_back(plain, beside), file=file, extra=extra)


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


def encode_with_arrays(record: object, file: str, kind: object = None) -> tuple[str, bytes | None]:
    """`encode`, and the bytes of `file` beside it with the large arrays, None where it has few (see `elsewhere`)."""
    plain, arrays = set_aside(to_plain(record, kind), file)
    return encode_json(plain), arrays


def without_arrays(text: str, file: str) -> tuple[str, bytes | None]:
    """`encode_with_arrays` of what `encode` gave; arrays with numbers that are not finite stay."""
    if len(text) < 2 * MOST_NUMBERS:  # a number and the comma after it
        return text, None
    plain, arrays = set_aside(from_json(text), file)
    return (text, None) if arrays is None else (encode_json(plain), arrays)


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
    named: dict[str, JsonSchemaValue] = {}
    shared = _tidy({"$schema": GenerateJsonSchema.schema_dialect, **schema}, named)
    return encode_json({**shared, "$defs": {"number": _NUMBER, **named, **shared.get("$defs", {})}})


LARGE_ARRAY = "large_array"
"""Title of the schema of what stands for an array in another file."""


def _tidy(schema: Json, named: dict[str, JsonSchemaValue]) -> Json:
    """`schema` with one definition of a number and of a large array, the latter in `named`, and descriptions of one line."""
    if schema == _NUMBER:
        return {"$ref": "#/$defs/number"}
    if isinstance(schema, dict) and schema.get("title") == LARGE_ARRAY:
        named[LARGE_ARRAY] = {key: value for key, value in schema.items() if key != "title"}
        return {"$ref": f"#/$defs/{LARGE_ARRAY}"}
    if isinstance(schema, dict):
        tidy = {key: _tidy(value, named) for key, value in schema.items()}
        said = tidy.get("description")
        return {**tidy, "description": " ".join(said.split())} if isinstance(said, str) else tidy
    return [_tidy(value, named) for value in schema] if isinstance(schema, list) else schema


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
