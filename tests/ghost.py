"""A stand-in for a GPU where there is none: the PyTorch device `ghost`, made in Python.

Its tensors keep their numbers on the CPU and refuse what CUDA's refuse: operations over two devices, `.numpy()`, generators
of another device. Every operation is counted, and so is every one that makes the host wait for the device. `install` changes
torch for good, so it belongs into a process of its own. Streams, a GPU's own rounding and atomics are not imitated.
"""

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, library
from torch.utils import backend_registration
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

NAME = "ghost"
aten = torch.ops.aten
# Between two devices on purpose.
COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# What CUDA answers only when all that was asked before is done, besides copies to the CPU and indices that are masks.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
# torch makes these by resizing an empty tensor, and a wrapper's size is fixed.
RESIZING = (aten.arange.default, aten.arange.start, aten.arange.start_step, aten.eye.default, aten.linspace.default)
operations: Counter[str] = Counter()
synchronisations: Counter[str] = Counter()


class _Runtime:
    """What `torch.ghost` is, as `torch.cuda` is CUDA's."""

    def __init__(self) -> None:
        self._generator = torch.Generator()

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def set_device(self, device: object) -> None:
        pass

    def synchronize(self, device: object = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def manual_seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: object = None) -> Tensor:
        return self._generator.get_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        self._generator.set_state(state)

    def get_rng_state_all(self) -> list[Tensor]:
        return [self.get_rng_state()]

    def set_rng_state_all(self, states: Sequence[Tensor]) -> None:
        self.set_rng_state(states[0])


class Ghost(Tensor):
    """A tensor on the stand-in; `on_cpu` holds its numbers."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor, requires_grad: bool = False) -> "Ghost":
        made: Ghost = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            layout=on_cpu.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.on_cpu = on_cpu
        return made

    def __repr__(self) -> str:
        return f"Ghost({self.on_cpu})"

    def tolist(self) -> Any:
        synchronisations["tolist"] += 1
        return self.on_cpu.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {NAME} tensor to numpy; copy it to the CPU first")

    def untyped_storage(self) -> Any:
        return self.on_cpu.untyped_storage()

    def data_ptr(self) -> int:
        return self.on_cpu.data_ptr()

    # torch makes tensors of lists in C++, which does not know a device made in Python.
    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or self.device).requires_grad_(requires_grad)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_lists_as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_lists_as_tensors(index), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _lists_as_tensors(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_lists_as_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One operation on the CPU's numbers, after the checks that CUDA would make."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    here = any(isinstance(tensor, Ghost) for tensor in tensors)
    if not here and asked != NAME:
        return func(*args, **kwargs)
    if func is aten._pin_memory.default or "pinned" in func.__name__:
        return args[0]
    operations[str(func)] += 1
    _count_wait(func, args, asked, here)
    if func not in COPIES:
        _refuse_two_devices(func, args, tensors)
    stays = isinstance(args[0], Ghost) if func is aten.copy_.default else asked in (None, NAME)
    _refuse_generator(func, args, kwargs, stays)
    plain_args, plain = tree_map(lambda leaf: leaf.on_cpu if isinstance(leaf, Ghost) else leaf, (args, dict(kwargs)))
    if asked == NAME:
        plain["device"] = torch.device("cpu")
    if plain.get("pin_memory"):
        del plain["pin_memory"]
    found = func(*plain_args, **plain)
    if not stays:
        return found
    return _written(func, args, kwargs, tree_map(lambda leaf: Ghost(leaf) if _is_plain(leaf) else leaf, found))


def _is_plain(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, Ghost)


def _count_wait(func: Any, args: Sequence[Any], asked: str | None, here: bool) -> None:
    masks = (
        [index for index in args[1] if isinstance(index, Ghost) and index.dtype in (torch.bool, torch.uint8)]
        if func in INDEXING
        else []
    )
    away = (func is aten._to_copy.default and asked not in (None, NAME)) or (
        func is aten.copy_.default and _is_plain(args[0])
    )
    if func in WAITING or masks or (here and away):
        synchronisations["mask" if masks else "copy to the CPU" if away else str(func)] += 1


def _refuse_two_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Numbers without a dimension may come from the CPU, and so may places."""
    if func in INDEXING:
        tensors = [args[0], *(value for value in args[2:3] if value.dim())]
    elif torch.Tag.pointwise in func.tags:
        written = tensors[:1] if func.__name__.partition(".")[0].endswith("_") else []
        tensors = [*written, *(tensor for tensor in tensors if tensor.dim())]
    kinds = {isinstance(tensor, Ghost) for tensor in tensors}
    if len(kinds) > 1 or (kinds == {False} and torch.Tag.pointwise in func.tags):
        shapes = [(tensor.device.type, tuple(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {shapes} in {func}")


def _refuse_generator(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], stays: bool) -> None:
    drawn = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Generator)]
    if stays and any(generator.device.type != NAME for generator in drawn):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' in {func}")


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any) -> Any:
    """What an operation wrote into is what it returns."""
    returns, given = func._schema.returns, {}
    if not any(entry.alias_info is not None and entry.alias_info.is_write for entry in returns):
        return found
    for place, entry in enumerate(func._schema.arguments):
        if entry.alias_info is not None and entry.alias_info.is_write:
            value = kwargs.get(entry.name, args[place] if place < len(args) else None)
            if value.shape != value.on_cpu.shape:  # such as squeeze_
                value.data = Ghost(value.on_cpu)
            assert value.shape == value.on_cpu.shape, f"{func} resized what it wrote into"
            given[frozenset(entry.alias_info.before_set)] = value
    several = found if isinstance(found, list | tuple) else (found,)
    values = [
        value if entry.alias_info is None else given.get(frozenset(entry.alias_info.before_set), value)
        for entry, value in zip(returns, several, strict=True)
    ]
    return values[0] if len(values) == 1 else tuple(values)


def install() -> None:
    """From here on `ghost` is a device of this process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Runtime())
    everything, factories = library.Library("_", "IMPL"), library.Library("aten", "IMPL")
    everything.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    for func in RESIZING:
        factories.impl(func, lambda *args, f=func, **kwargs: _run(f, args, kwargs), "PrivateUse1")
    install.libraries = everything, factories  # type: ignore[attr-defined]  # they count as long as they live
    importlib.import_module("torch._dynamo")  # compares the signatures of what is exchanged here
    _device_constructors()  # notes the functions that `with torch.device(...)` governs, before one of them is exchanged
    shallow, made = torch._has_compatible_shallow_copy_type, torch.tensor

    def compatible(a: Tensor, b: Tensor) -> bool:  # so that `Module.to` makes new parameters
        return a is b or (not isinstance(a, Ghost) and not isinstance(b, Ghost) and shallow(a, b))

    def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        found = made(data, dtype=dtype)
        return (found if device is None else found.to(device)).requires_grad_(requires_grad)

    torch._has_compatible_shallow_copy_type = compatible
    torch.tensor = tensor
    # Tensors of inference mode are made past the wrapper.
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()


@contextlib.contextmanager
def counting() -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Operations and synchronisations of a block, filled in when it ends."""
    before = operations.copy(), synchronisations.copy()
    done: tuple[Counter[str], Counter[str]] = Counter(), Counter()
    yield done
    for counted, now, then in zip(done, (operations, synchronisations), before, strict=True):
        counted.update(now - then)
