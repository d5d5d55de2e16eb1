"""Methods against forgetting by name: ours, one file each in `training/methods/`, and those of other packages.

Another package names its methods as entry points of the group `llm_forgetting.methods`. A method is loaded when a
configuration names it. So torch is, too, which this package does not import itself.
"""

import dataclasses
import difflib
import functools
import json
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from llm_forgetting.config.rules import Bounds
from llm_forgetting.errors import UserError
from llm_forgetting.files import Json, from_plain, load_yaml

if TYPE_CHECKING:
    from llm_forgetting.config.sections import ExperimentConfig

GROUP = "llm_forgetting.methods"
BUILT_IN = "llm_forgetting.training.methods"
PATH = "training.methods"
Chosen = Mapping[str, Json]
"""Methods by name, each with its options."""


_recorded = ContextVar("recorded", default=False)


class ConfiguredMethod(Protocol):
    """What a configuration asks of a method; all of it is `training.method.Method`."""

    name: str

    def acts(self, number: int) -> bool:
        """Whether the method changes the training on task `number` (from 1)."""

    def problems(self, config: "ExperimentConfig") -> Iterator[str]:
        """What in the rest of the configuration the method cannot work with."""


def method_names() -> list[str]:
    """Ours, and those that other packages add."""
    spec = find_spec(BUILT_IN)
    ours = [module.name for module in pkgutil.iter_modules((spec and spec.submodule_search_locations) or ())]
    return sorted({*ours, *(entry.name for entry in entry_points(group=GROUP))})


def method_of(name: str, given: Json) -> ConfiguredMethod:
    """The method `name` with its options.

    Args:
        name: As `training.methods` names it.
        given: Values of its options; those left out have their defaults.

    Returns:
        The method, which has not begun.

    Raises:
        UserError: For a name, an option or a value that is not known.
    """
    kind = _kind(name)
    options = kind.Options
    fields = {field.name: field for field in dataclasses.fields(options)}
    if not isinstance(given, Mapping | None):
        raise UserError(f"{PATH}.{name} must hold options such as {{strength: 10}}, was {given!r}")
    for option in given or {}:
        if option not in fields:
            known = ", ".join(fields) or "none"
            raise UserError(f"{PATH}.{name}.{option} is not an option; the options of {name} are {known}")
    built = from_plain(options, dict(given or {}), file=f"{PATH}.{name}")
    for field in fields.values():
        bounds = field.metadata.get("bounds")
        value = getattr(built, field.name)
        if isinstance(bounds, Bounds) and (problem := bounds.problem(f"{PATH}.{name}.{field.name}", value)):
            raise UserError(problem)
    method: ConfiguredMethod = kind(built)
    method.name = name
    return method


@functools.cache
def _kind(name: str):  # type: ignore[no-untyped-def]
    if find_spec(f"{BUILT_IN}.{name}") is not None if name.isidentifier() else False:
        return import_module(f"{BUILT_IN}.{name}").METHOD
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        names = method_names()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{PATH} must name methods among {', '.join(names)}, {name!r} is none of them{hint}")
    try:
        kind = found[0].load()
    except Exception as error:  # another package's import may fail in any way
        said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{PATH}.{name} cannot be loaded from {found[0].value}: {said}") from error
    if not dataclasses.is_dataclass(getattr(kind, "Options", None)):
        raise UserError(
            f"{PATH}.{name} must be a method (a subclass of training.method.Method), {found[0].value} is none"
        )
    return kind


@contextmanager
def methods_as_recorded() -> Iterator[None]:
    """Within it a configuration may name any method: that of a finished run, whose methods this machine need not have."""
    before = _recorded.set(True)
    try:
        yield
    finally:
        _recorded.reset(before)


def method_problems(config: "ExperimentConfig") -> Iterator[str]:
    """Everything about the methods of a configuration that makes it impossible, one line each."""
    if _recorded.get():
        return
    interventions = config.interventions
    twice = {
        "sam": interventions.sam_rho > 0, "replay": interventions.replay_items > 0, "anchor": interventions.anchor > 0,
        "rescale": interventions.rescale != 1,
    }  # fmt: skip
    for name, given in config.training.methods.items():
        try:
            method = method_of(name, given)
        except UserError as error:
            yield str(error)
            continue
        if twice.get(name):
            yield f"{PATH}.{name} and interventions.* ask for the same method; leave one of them out"
        for problem in method.problems(config):
            yield f"{PATH}.{name} {problem}"


def acting(chosen: Chosen, number: int) -> dict[str, Json]:
    """Those of the chosen methods that change the training on task `number` (from 1)."""
    return {name: given for name, given in chosen.items() if method_of(name, given).acts(number)}


def methods_key(config: "ExperimentConfig") -> str:
    """A text that is the same where the same methods with the same options add to the memory of training."""
    given = [config.training.methods, config.interventions.sam_rho > 0, config.interventions.anchor > 0]
    return json.dumps(given, sort_keys=True)


def names_option(path: object) -> bool:
    """Whether a dotted path names a method or an option of one, and so is no field."""
    return str(path).startswith(f"{PATH}.")  # YAML's keys may be numbers


def options_apart(fields: Mapping[str, object]) -> tuple[dict[str, object], dict[tuple[str, ...], Json]]:
    """Fields by dotted path, and the values of methods and their options by path."""
    found = {tuple(path.removeprefix(f"{PATH}.").split(".")): v for path, v in fields.items() if names_option(path)}
    return {path: value for path, value in fields.items() if not names_option(path)}, found


def set_apart(arguments: Sequence[str]) -> tuple[list[str], dict[tuple[str, ...], Json]]:
    """Command-line words without those that name a method or an option of one, and the values of those by path.

    The parser of a whole configuration would put an option in the place of all others of its method.
    """
    rest, found, words = [], dict[tuple[str, ...], Json](), iter(arguments)
    for word in words:
        path, equals, value = word.partition("=")
        if path.startswith(f"--{PATH}."):
            found[tuple(path.removeprefix(f"--{PATH}.").split("."))] = load_yaml(value if equals else next(words, ""))
        else:
            rest.append(word)
    return rest, found


def laid_over(methods: Json, values: Mapping[tuple[str, ...], Json]) -> Json:
    """`methods` with the values by path that were set apart; UserError where a path is not NAME or NAME.OPTION."""
    merged: dict[str, Json] = dict(methods)
    for path, value in values.items():
        if len(path) > 2 or not all(path):
            raise UserError(f"--{PATH}.{'.'.join(path)} must be --{PATH}.NAME.OPTION VALUE")
        before: Json = merged.get(path[0])
        kept = before if isinstance(before, dict) else {}
        merged[path[0]] = {**kept, path[1]: value} if len(path) == 2 else value
    return {name: {} if given is None else given for name, given in merged.items()}
