"""Arrays: their types and JSON, the standard error of a mean, and rounding noise set to zero."""

import math
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Floats = NDArray[np.float64]

# Losses, correlations and shares are of the size of 1, and sums over items or runs keep some thirteen of float64's digits.
ROUNDING = 1e-12


def mean_stderr(values: Floats) -> tuple[float, float]:
    """Mean of values (n,) and its `standard_error`; infinite for a single value."""
    stderr = standard_error(values)
    return float(values.mean()), math.inf if stderr is None else stderr


def settled(value: float) -> float:
    """`value`, or 0 where rounding alone makes numbers of that size; 1e-5 is a number."""
    return 0.0 if abs(value) < ROUNDING else value


def standard_error(values: ArrayLike) -> float | None:
    """sd / sqrt(n) with divisor n - 1 of an array of shape (n,); None for a single value."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else None


ELSEWHERE: JsonSchemaValue = {
    "title": "large_array",
    "type": "object",
    "description": "the array is in the .npz file beside this one, under this key",
    "properties": {"file": {"type": "string"}, "key": {"type": "string"}},
    "required": ["file", "key"],
    "additionalProperties": False,
}
"""What stands in place of a large array in a document with many."""


class Array:
    """Metadata that lets pydantic read nested lists as an array of `ndim` axes and write them again."""

    def __init__(self, dtype: DTypeLike, ndim: int, *, null: bool = False) -> None:
        self.dtype, self.ndim, self.null = np.dtype(dtype), ndim, null

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(_listed)
        )

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        cell: JsonSchemaValue = {"b": {"type": "boolean"}, "i": {"type": "integer"}}.get(self.dtype.kind) or {
            "anyOf": [
                {"type": "number"},
                {"enum": ["nan", "inf", "-inf"]},
                *([{"type": "null"}] if self.null else []),
            ]
        }
        for _ in range(self.ndim):
            cell = {"type": "array", "items": cell}
        return {"anyOf": [cell, ELSEWHERE]}

    def _read(self, value: object) -> NDArray[Any]:
        kinds = {"f": "numbers", "i": "whole numbers", "b": "true and false"}
        told = f"lists of {kinds[self.dtype.kind]}, {self.ndim} deep"
        if not isinstance(value, list | tuple | np.ndarray):
            raise _wrong(f"must be {told}, is {type(value).__name__}")
        try:
            array = np.array(value, dtype=self.dtype if self.dtype.kind == "f" else None)
        except (ValueError, TypeError):
            raise _wrong(f"must be {told} and of equal length") from None
        if not array.size:
            return np.zeros((0,) * self.ndim, dtype=self.dtype)
        if array.ndim != self.ndim:
            raise _wrong(f"must be {told}, is {array.ndim} deep")
        if self.dtype.kind == "f":
            if not self.null and isinstance(value, list) and np.isnan(array).any() and None in _leaves(value):
                raise _wrong(f"must be {told}, holds null")
        elif array.dtype.kind != self.dtype.kind:
            raise _wrong(f"must be {told}")
        array = array.astype(self.dtype, copy=False)
        array.flags.writeable = False
        return array


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("array", "{message}", {"message": message})


def _listed(array: NDArray[Any]) -> object:
    return array.tolist()


def _leaves(value: object) -> Iterable[object]:
    if not isinstance(value, list):
        yield value
        return
    for entry in value:
        yield from _leaves(entry)


Floats1 = Annotated[NDArray[np.float64], Array("float64", 1)]

Floats2 = Annotated[NDArray[np.float64], Array("float64", 2)]

Floats3 = Annotated[NDArray[np.float64], Array("float64", 3)]

Places2 = Annotated[NDArray[np.float64], Array("float64", 2, null=True)]

Ints1 = Annotated[NDArray[np.int64], Array("int64", 1)]

Bools2 = Annotated[NDArray[np.bool_], Array("bool", 2)]
