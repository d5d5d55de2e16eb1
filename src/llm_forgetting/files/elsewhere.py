"""Large arrays of a JSON document in a file beside it: NAME.npz, without pickle. The document names file and key."""

import io
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_forgetting.errors import UserError

MOST_NUMBERS = 200_000
"""A document whose arrays hold no more numbers keeps them: those of two tasks do."""
SMALL = 256
"""Arrays of fewer numbers stay in the document."""
_REFERENCE, _NULLS = {"file", "key"}, " is null"
Arrays = dict[str, NDArray[Any]]


def set_aside(document: Any, file: str) -> tuple[Any, bytes | None]:
    """A plain JSON document and what goes into `file` beside it; the document itself and None where its arrays are few.

    An array is a regular nest of lists of numbers. In its place stands {"file": file, "key": its JSON pointer}.
    """
    arrays = {key: array for key, array in _arrays(document, "") if array.size >= SMALL}
    if sum(array.size for array in arrays.values()) <= MOST_NUMBERS:
        return document, None
    kept: Arrays = {}
    for key, array in arrays.items():
        if array.dtype == object:  # null where nothing was measured
            kept[key + _NULLS] = np.array([entry is None for entry in array.flat]).reshape(array.shape)
            kept[key] = array.astype(np.float64)
        else:
            kept[key] = array
    return _replaced(document, "", arrays, file), _npz(kept)


def _npz(arrays: Arrays) -> bytes:
    """What np.savez_compressed writes, for keys of any name, the same bytes for the same arrays."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as file:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array)
            file.writestr(zipfile.ZipInfo(f"{key}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return written.getvalue()


def put_back(document: Any, read: Callable[[str], bytes]) -> Any:
    """The document with its arrays as nested lists; `read` gives the bytes of a file beside it.

    UserError where such a file is not what was written.
    """
    opened: dict[str, zipfile.ZipFile] = {}

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == _REFERENCE and all(isinstance(entry, str) for entry in value.values()):
                return found(**value)
            return {name: whole(entry) for name, entry in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], dict | list):
            return [whole(entry) for entry in value]
        return value

    def found(file: str, key: str) -> Any:
        try:
            if file not in opened:
                opened[file] = zipfile.ZipFile(io.BytesIO(read(file)))
            return _listed(opened[file], key)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} must hold {key}, an array of the JSON file beside it: {error}") from error

    return whole(document)


def _listed(file: zipfile.ZipFile, key: str) -> Any:
    array = _member(file, key)
    if f"{key}{_NULLS}.npy" in file.namelist():
        array = array.astype(object)
        array[_member(file, key + _NULLS)] = None
    return array.tolist()


def _member(file: zipfile.ZipFile, key: str) -> NDArray[Any]:
    with file.open(f"{key}.npy") as member:
        array: NDArray[Any] = np.lib.format.read_array(member)  # which refuses objects: nothing is unpickled
    return array


def _arrays(value: Any, key: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every regular nest of numbers by its JSON pointer."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _arrays(entry, _joined(key, name))
    elif isinstance(value, list | tuple):
        array = _array(value)
        if array is not None:
            yield key, array
        elif not _is_nest(value):
            for place, entry in enumerate(value):
                yield from _arrays(entry, _joined(key, place))


def _array(value: Any) -> NDArray[Any] | None:
    """A nest of lists as an array, None where it is not regular or not of numbers (in several axes: or null)."""
    if not _is_nest(value):
        return None
    try:
        array = np.array(value)
    except ValueError:  # of unequal length
        return None
    if array.dtype == object:
        flat = array.ravel().tolist()
        return array if array.ndim > 1 and all(entry is None or type(entry) is float for entry in flat) else None
    return array if array.dtype.kind in "fib" else None


def _is_nest(value: Any) -> bool:
    """Whether the first leaf of nested lists is a number or null."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value is None or isinstance(value, bool | int | float)


def _replaced(value: Any, key: str, arrays: Arrays, file: str) -> Any:
    if key in arrays:
        return {"file": file, "key": key}
    if isinstance(value, dict):
        return {name: _replaced(entry, _joined(key, name), arrays, file) for name, entry in value.items()}
    if isinstance(value, list | tuple) and not _is_nest(value):
        return [_replaced(entry, _joined(key, place), arrays, file) for place, entry in enumerate(value)]
    return value


def _joined(key: str, name: object) -> str:
    """A JSON pointer (RFC 6901) without its first slash."""
    part = str(name).replace("~", "~0").replace("/", "~1")
    return f"{key}/{part}" if key else part
