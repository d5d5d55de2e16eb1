"""From a preset or YAML file and dotted overrides to an `ExperimentConfig`, through jsonargparse."""

import argparse
import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_loader

from llm_forgetting.config.methods import laid_over, options_apart, set_apart
from llm_forgetting.config.paths import leaves
from llm_forgetting.config.sections import EvaluateConfig, ExperimentConfig, ForecastConfig, ScanConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import load_yaml, read_yaml

PRESETS = ("quickstart", "full", "skills", "smoke", "llama2-7b")
DEFAULT_PRESET = "quickstart"
Config = TypeVar("Config", ExperimentConfig, ScanConfig, ForecastConfig, EvaluateConfig)
_STRICT = "strict_yaml"
set_loader(_STRICT, load_yaml, exceptions=(yaml.YAMLError,))


def parse_config(
    name: str,
    dotted: Sequence[str],
    *,
    tasks: Sequence[str] | None = None,
    task_at: Mapping[int, str | None] | None = None,
    resumed: bool = False,
) -> ExperimentConfig:
    """The configuration of preset or file `name`, overridden by `--dotted.path=value` arguments.

    `tasks` replaces all of data.tasks, `task_at` some of them by position. UserError names the dotted path of whatever
    is unknown, of the wrong type, or impossible.
    """
    arguments, adapter = _without_null(_config_path(name, resumed), dotted)
    parser, parsed = _parsed(ExperimentConfig, arguments)
    names = list((parsed.data.tasks if tasks is None else tasks) or ())
    for position, task in (task_at or {}).items():
        if task is not None:
            names[position : position + 1] = [task]
    parsed.data.tasks = tuple(names)
    return _built(ExperimentConfig, parser, parsed, adapter=adapter)


def _without_null(path: Path, dotted: Sequence[str]) -> tuple[list[str], bool]:
    """Arguments for the parser without `lora: null`, and whether there is an adapter: its parser knows sections as whole.

    A section `definitions` of the file becomes data.definitions: the file itself.
    """
    words, nulls = list(dotted), ("null", "~", "none", "None", "")
    lone = [n for n, word in enumerate(words[:-1]) if word == "--lora" and words[n + 1] in nulls]
    for n in lone:
        words[n : n + 2] = [f"--lora={words[n + 1]}", ""]
    left = [word for word in words if word and word not in {f"--lora={null}" for null in nulls}]
    said, fields = len(left) < len([word for word in words if word]), any(word.startswith("--lora.") for word in left)
    if said and fields:
        raise UserError("--lora null and fields of lora exclude each other; give one of them")
    if not _has_fields(path):
        return left, not said
    content = read_yaml(path, "--config")
    if not isinstance(content, dict) or ("lora" not in content and "definitions" not in content):
        return [f"--config={path}", *left], not said
    null = content.get("lora", "") is None
    kept = {name: value for name, value in content.items() if not (name == "lora" and null)}
    return [f"--config={yaml.safe_dump(_with_own_tasks(kept, path))}", *left], fields if null else not said


def _with_own_tasks(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """`content` with the file itself as data.definitions, where it has a section `definitions`; UserError for both."""
    if "definitions" not in content:
        return content
    others = {name: value for name, value in content.items() if name != "definitions"}
    data = others.get("data") or {}
    if isinstance(data, dict) and "definitions" in data:
        raise UserError(f"{path} must define tasks in `definitions` or name a file in data.definitions, does both")
    return {**others, "data": {**data, "definitions": str(path.absolute())} if isinstance(data, dict) else data}


class ConfigTemplate:
    """A preset or file that thousands of configurations follow: it and every value of a field are parsed once."""

    def __init__(self, name: str) -> None:
        arguments, self._adapter = _without_null(_config_path(name, resumed=False), [])
        self._base = _parsed(ExperimentConfig, arguments)[1]
        self._typed: dict[tuple[str, str], object] = {}

    def config(self, fields: Mapping[str, object], tasks: Sequence[str] | None) -> ExperimentConfig:
        """As `parse_config` gives it with these fields by dotted path; UserError as there."""
        sections = {name: self._base[name].as_dict() for name in _sections()}
        fields, methods = options_apart(fields)
        for path, value in fields.items():
            section, _, field = path.partition(".")
            sections[section][field] = self._value(path, value)
        sections["training"]["methods"] = laid_over(sections["training"]["methods"], methods)
        sections["data"]["tasks"] = tuple((sections["data"]["tasks"] if tasks is None else tasks) or ())
        adapted = self._adapter or any(path.startswith("lora.") for path in fields)
        built: dict[str, Any] = {name: kind(**sections[name]) for name, kind in section_classes().items()}
        return ExperimentConfig(**(built if adapted else {**built, "lora": None}))

    def _value(self, path: str, value: object) -> object:
        key = path, repr(value)
        if key not in self._typed:
            self._typed[key] = _parsed(ExperimentConfig, [f"--{path}={written(value)}"])[1][path]
        return self._typed[key]


def parse_scan(dotted: Sequence[str], tasks: Sequence[str] | None) -> ScanConfig:
    """The configuration of a landscape of a saved adapter: the defaults, overridden by `--dotted.path=value` arguments."""
    return _parsed_with(ScanConfig, dotted, tasks)


def parse_forecast(dotted: Sequence[str], tasks: Sequence[str] | None) -> ForecastConfig:
    """The configuration of a forecast between two saved checkpoints; as `parse_scan`."""
    return _parsed_with(ForecastConfig, dotted, tasks)


def parse_evaluate(dotted: Sequence[str], tasks: Sequence[str] | None) -> EvaluateConfig:
    """The configuration of an evaluation; as `parse_scan`."""
    return _parsed_with(EvaluateConfig, dotted, tasks)


def _parsed_with(cls: type[Config], dotted: Sequence[str], tasks: Sequence[str] | None) -> Config:
    parser, parsed = _parsed(cls, dotted)
    parsed.data.tasks = tuple((parsed.data.tasks if tasks is None else tasks) or ())
    return _built(cls, parser, parsed)


def config_help(cls: type = ExperimentConfig) -> str:
    """Every dotted path with its meaning, type and default."""
    text: str = _parser(cls).format_help()
    fields = text[text.index("\n\n") :].split("Path to a configuration file.", 1)[-1].strip("\n")
    return re.sub(r"\n +--\w+ CONFIG\s+Path to a configuration file\.", "", fields)  # a section is no option of ours


@functools.cache
def _parser(cls: type) -> Any:
    parser = ArgumentParser(
        prog="llm-forgetting run", exit_on_error=False, print_config=None, add_help=False, allow_abbrev=False,
        parser_mode=_STRICT,
    )  # fmt: skip
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(_whole(cls))
    return parser


def section_classes(cls: type = ExperimentConfig) -> dict[str, type]:
    """The class of every section, also of one that may be null."""
    return {
        name: next(kind for kind in get_args(given) or (given,) if kind is not type(None))
        for name, given in get_type_hints(cls).items()
    }


def _whole(cls: type) -> type:
    """`cls` with all of its sections, none of which may be null, and without its rules."""
    factories = {field.name: field.default_factory for field in dataclasses.fields(cls)}
    fields = [
        (name, kind, dataclasses.field(default_factory=factories[name])) for name, kind in section_classes(cls).items()
    ]
    return dataclasses.make_dataclass(cls.__name__, fields, namespace={"__doc__": cls.__doc__}, frozen=True)


def _parsed(cls: type, arguments: Sequence[str]) -> tuple[Any, Any]:
    parser = _parser(cls)
    arguments, methods = set_apart(arguments) if cls is ExperimentConfig else (arguments, {})
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        path, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and path in _sections():  # jsonargparse would read the value as a file
            raise UserError(unknown_option(path, flag=True))
        _require_number(path, _plain(value if equals else following))
    try:
        parsed = parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(_one_line(str(error))) from error
    if cls is ExperimentConfig:
        parsed.training.methods = laid_over(parsed.training.methods, methods)
    return parser, parsed


def _built(cls: type[Config], parser: Any, parsed: Any, *, adapter: bool = True) -> Config:
    sections = parser.instantiate(parsed)
    given = {field.name: getattr(sections, field.name) for field in dataclasses.fields(cls)}
    return cls(**(given if adapter else {**given, "lora": None}))


def _config_path(name: str, resumed: bool) -> Path:
    if name in PRESETS and not Path(name).is_file():
        return Path(str(resources.files("llm_forgetting").joinpath(f"presets/{name}.yaml")))
    path = Path(name)
    if resumed and not path.is_file():
        raise UserError(f"--resume needs the folder of an earlier run (with its config.yaml); {path.parent} is not one")
    if not path.is_file():
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"--config must be a preset ({', '.join(PRESETS)}) or a YAML file, {name!r} is neither{hint}")
    return path


def _has_fields(path: Path) -> bool:
    """Whether the YAML file `path` sets anything; UserError where it is not sections of fields, as no parser says it well."""
    content = read_yaml(path, "--config")
    if content is None:
        return False
    if not isinstance(content, dict):
        raise UserError(f"--config {path} must hold sections such as `training:`, was {str(content)[:40]!r}")
    for name, value in content.items():
        if name in _sections() and not isinstance(value, dict) and (name, value) != ("lora", None):
            raise UserError(
                f"{name} must hold fields such as {name}.{_first_field(name)}, was {value!r}; or leave it out"
            )
    known = set(dotted_paths())
    defines = isinstance(content.get("definitions"), dict)
    for field, value in leaves({name: part for name, part in content.items() if name != "definitions" or not defines}):
        if field not in known and (field, value) != ("lora", None):
            raise UserError(unknown_option(field))
        _require_number(field, value)
    return True


def _require_number(path: str, value: object) -> None:
    """Refuse a text for a number: jsonargparse would read 12:30 as 750."""
    if isinstance(value, str) and path in _number_fields():
        raise UserError(f"{path} must be {_number_fields()[path]}, was {value!r}")


@functools.cache
def _number_fields() -> dict[str, str]:
    """What the fields that hold a number may be."""
    kinds = {int: "a whole number", float: "a number", type(None): "null"}
    types = {
        f"{name}.{field}": get_args(given) or (given,)
        for name, section in section_classes().items()
        for field, given in get_type_hints(section).items()
    }
    return {
        path: " or ".join(kinds[one] for one in given) for path, given in types.items() if set(given) <= kinds.keys()
    }


def _plain(text: str) -> object:
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _sections() -> list[str]:
    return [field.name for field in dataclasses.fields(ExperimentConfig)]


def _first_field(section: str) -> str:
    return next(path.partition(".")[2] for path in dotted_paths() if path.startswith(f"{section}."))


def dotted_paths(cls: type = ExperimentConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted path of the configuration."""
    for field in dataclasses.fields(cls):
        section = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        if isinstance(section, type):
            yield from dotted_paths(section, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def written(value: object) -> str:
    """A value as a dotted argument gives it: YAML in one line."""
    plain = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(plain, default_flow_style=True, width=10**6)).removesuffix("\n").removesuffix("\n...")


def _one_line(message: str) -> str:
    """jsonargparse's message as one line: what must hold, what was given, what to do."""
    unknown = re.search(r"Group '(\w[\w.]*)' does not accept option '([\w.]+)'", message)
    if unknown:
        return unknown_option(f"{unknown[1]}.{unknown[2]}")
    stray = re.search(r"unrecognized arguments: (\S+)", message)
    if stray:
        return unknown_option(stray[1].removeprefix("--").split("=")[0], flag=stray[1].startswith("--"))
    extra = re.search(
        r"(?:[Oo]ption|[Kk]ey) ['\"]([\w.]+)['\"] is not (?:accepted|expected)|does not accept option '([\w.]+)'",
        message,
    )
    if extra:
        return unknown_option(extra[1] or extra[2])
    key = re.search(r'[Kk]ey "([\w.]+)"', message)
    expected = re.findall(r"Expected an? (<class '\w+'>|typing\.Literal\[[^]]*\]|\w+)", message)
    given = re.search(r"(?:Given value|Got value): (.*)", message)
    if key and expected and given:
        kinds = [re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.Literal", "one of ") for kind in expected]
        readable = " or ".join(
            {
                "NoneType": "null",
                "int": "a whole number",
                "float": "a number",
                "tuple": "a list",
                "str": "a text",
                "dict": "a mapping such as {name: value}",
            }.get(k, k)
            for k in kinds
        )
        return f"{key[1]} must be {readable}, was {'null' if given[1].strip() == 'None' else repr(given[1].strip())}"
    return " ".join(message.split())


# What other programs call a field.
_ALSO_CALLED = {
    "lr": "training.learning_rate",
    "epochs": "training.num_epochs",
    "num_train_epochs": "training.num_epochs",
    "per_device_train_batch_size": "training.batch_size",
    "r": "lora.rank",
    "model": "model.name",
}


def unknown_option(path: str, *, flag: bool = False) -> str:
    """What is said of a dotted path that the configuration has not."""
    known, last = list(dotted_paths()), path.rsplit(".", 1)[-1]
    near = (
        [_ALSO_CALLED[last]]
        if last in _ALSO_CALLED
        else difflib.get_close_matches(path, known, n=1) or [name for name in known if name.rsplit(".", 1)[-1] == last]
    )
    hint = f"; did you mean {'--' if flag else ''}{near[0]}?" if near else "; --help lists all"
    return f"{'--' if flag else ''}{path} is not an option{hint}"
