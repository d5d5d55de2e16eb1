"""The linear layers of a decoder: which of them are quantised, and which an adapter is put on."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix product, of transformers' own class in GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def between_embeddings(backbone: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers of a backbone but those whose weight is that of the input or output embeddings."""
    modules = [getattr(backbone, f"get_{which}_embeddings")() for which in ("input", "output")]
    embeddings = {id(module.weight) for module in modules if module is not None}
    for name, layer in backbone.named_modules():
        if is_linear(layer) and id(layer.weight) not in embeddings:
            yield name, layer


def target_names(
    backbone: Any, asked: str | tuple[str, ...], notify: Callable[[str], None] = lambda line: None
) -> str | list[str]:
    """What PEFT is to be given for `lora.target_modules`.

    `all-linear` of a mixture of experts would be the experts' weights, which are no modules: there it is the linear modules by
    their names, and `notify` hears so.
    """
    if asked != "all-linear":
        return [asked] if isinstance(asked, str) else list(asked)
    if not any(parameter.dim() == 3 for parameter in backbone.parameters()):
        return asked
    names = sorted({name.rsplit(".", 1)[-1] for name, _ in between_embeddings(backbone)})
    notify(
        f"lora.target_modules=all-linear: the experts of {type(backbone).__name__} are no linear modules and have no adapter; "
        f"adapted are {', '.join(names)}"
    )
    return names
