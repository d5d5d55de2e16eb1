"""adapter_config.json of anyone's adapter, checked before PEFT sees it: types, ranges, and patterns that end."""

import math
import re
from collections.abc import Callable, Iterator, Mapping

LONGEST = 1000
# Each further unbounded repeat multiplies the time of a failing match by the length of a module's name.
MOST_REPEATS = 5
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_INNERMOST_GROUP = re.compile(r"\((?:\?(?:P<\w+>|<?[=!]|[aiLmsux-]*:))?([^()]*)\)([*+{]?)")


def settings_problems(config: Mapping[str, object], largest: int) -> Iterator[str]:
    """What is wrong with an adapter's settings, a line each; `largest` is the largest side of its matrices."""
    rank, number = _whole(1, largest), _number(lambda value: value > 0, "a finite number greater than 0")
    for name in ("r", "lora_alpha", "target_modules"):
        if config.get("peft_type", "LORA") == "LORA" and config.get(name) is None:
            yield f"{name} must be given, it is not"
    checks: dict[str, Callable[[object], str | None]] = {
        "r": rank,
        "lora_alpha": number,
        "lora_dropout": _number(lambda value: 0 <= value < 1, "a number from 0 to below 1"),
        "use_rslora": _of_type(bool, "true or false"),
        "fan_in_fan_out": _of_type(bool, "true or false"),
        "runtime_config": _of_type(dict, "an object"),
        "loftq_config": _of_type(dict, "an object"),
        "base_model_name_or_path": _text,
        "revision": _text,
        "task_type": _text,
        "init_lora_weights": lambda value: None if isinstance(value, bool) else _text(value),
        "target_modules": _names_or_pattern,
        "exclude_modules": _names_or_pattern,
        "layers_pattern": lambda value: next(filter(None, map(_pattern, _listed(value))), None),
        "layers_to_transform": lambda value: next(filter(None, map(_whole(0, 100_000), _listed(value))), None),
        "rank_pattern": lambda value: _by_pattern(value, rank),
        "alpha_pattern": lambda value: _by_pattern(value, number),
    }
    for name, problem in checks.items():
        value = config.get(name)
        if value is not None and (said := problem(value)):
            yield f"{name} must {said}"


def _whole(low: int, high: int) -> Callable[[object], str | None]:
    def problem(value: object) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return None
        return f"be a whole number from {low} to {high}, was {_shown(value)}"

    return problem


def _number(holds: Callable[[float], bool], what: str) -> Callable[[object], str | None]:
    def problem(value: object) -> str | None:
        # 1e300: what float() of a JSON integer can still be
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and holds(value):
            return None
        return f"be {what}, was {_shown(value)}"

    return problem


def _of_type(kind: type, what: str) -> Callable[[object], str | None]:
    return lambda value: None if isinstance(value, kind) else f"be {what}, was {_shown(value)}"


def _text(value: object) -> str | None:
    if isinstance(value, str) and value.isprintable() and len(value) <= LONGEST:
        return None
    return f"be a line of at most {LONGEST} characters, was {_shown(value)}"


def _names_or_pattern(value: object) -> str | None:
    if isinstance(value, str):
        return _pattern(value)
    if isinstance(value, list):
        return next(filter(None, map(_text, value)), None)
    return f"be a list of names or a pattern, was {_shown(value)}"


def _by_pattern(value: object, problem: Callable[[object], str | None]) -> str | None:
    if not isinstance(value, dict):
        return f"map patterns to numbers, was {_shown(value)}"
    return next(filter(None, (_pattern(key) or problem(entry) for key, entry in value.items())), None)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _pattern(value: object) -> str | None:
    """What is wrong with a regular expression."""
    said = _text(value)
    if said or not isinstance(value, str):
        return said
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        return f"be a regular expression, {_shown(value)} is not: {error}"
    if not _ends_soon(value):
        return (
            f"be a pattern that matches in a moment: at most {MOST_REPEATS} repeats without bound, and no repeated group "
            f"with a repeat or an alternative in it; was {_shown(value)}"
        )
    return None


def _ends_soon(pattern: str) -> bool:
    """Whether matching cannot backtrack for ever: read off the text, groups from the inside out."""
    text = _ESCAPE_OR_CLASS.sub("x", pattern)
    repeats = len(re.findall(r"[*+]|\{\d*,\d*\}", text))
    while group := _INNERMOST_GROUP.search(text):
        inner, repeated = group.groups()
        inside = bool(re.search(r"[*+?{|]", inner))
        if inside and repeated:
            return False
        text = f"{text[: group.start()]}{'x?' if inside else 'x'}{repeated}{text[group.end() :]}"
    return repeats <= MOST_REPEATS


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        said = ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"a {type(value).__name__}"
    return said if len(said) <= 60 else f"{said[:57]}..."
