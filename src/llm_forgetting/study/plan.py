"""A study's YAML file, and the cells that it expands to: every cell is an experiment, addressed by what it computes."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llm_forgetting.config.files import PRESETS, ConfigTemplate, dotted_paths
from llm_forgetting.config.methods import PATH, method_names, names_option
from llm_forgetting.config.paths import SEEDS, leaves
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.files import from_plain, read_yaml
from llm_forgetting.study.measures import MEASURES, OUTCOMES

TASKS = "data.tasks"
_SECTIONS = ("name", "base", "set", "vary", "arms", "cells", "analysis")
DEFAULT_ARM = "default"
WHERE = "where"
_LENGTH = 16
MOST_CELLS = 10_000
"""Cells of a study: more are never computed."""
Fields = dict[str, object]


@dataclass(frozen=True)
class Analysis:
    """Analysis as it was decided before the study: the outcome, the one primary measure, and all others.

    Args:
        outcome: What is to be explained; one of `measures.OUTCOMES`.
        primary: The measure that is tested without adjustment, because it was named here.
        measures: All measures, the primary one among them.
        given: Sets of columns for partial correlations: by default |D|, learning of the last task, and how well the first task
            was learnt (its learning, and its loss at the first checkpoint).
        learning: Learning of the last task, at which interventions are compared.
        baseline: The arm that others are compared with; None for the first.
        controls: Arms that share their first checkpoint with the baseline's (such as a rescaling before task 2): compared with
            it, but left out of the associations, where they would count one checkpoint twice.
        forecast: The measure that is held against the outcome as a number, not only as a rank.
        seed: Seeds permutations and bootstraps.
    """

    outcome: str = "forgetting_loss"
    primary: str = "mean_rise"
    measures: tuple[str, ...] = (
        "mean_rise", "curvature_centre", "trace", "largest_eigenvalue", "average_sharpness", "worst_sharpness",
        "second_order", "quadratic_bound", "divergence", "relative_critical_sharpness", "update_norm",
    )  # fmt: skip
    given: tuple[tuple[str, ...], ...] = (
        ("update_norm",), ("learning_loss",), ("update_norm", "learning_loss"), ("first_learning_loss",), ("centre_loss",),
    )  # fmt: skip
    learning: str = "learning_loss"
    baseline: str | None = None
    controls: tuple[str, ...] = ()
    forecast: str = "second_order"
    seed: int = 0


@dataclass(frozen=True)
class CellPlace:
    """Place of a cell in its study: its id, task pair, tasks, factors by dotted path, and arm."""

    cell: str
    pair: str
    tasks: tuple[str, ...]
    factors: dict[str, object]
    arm: str


@dataclass(frozen=True)
class Cell:
    """Experiment of a study: its factors (what is varied, by dotted path), its arm, and its whole configuration."""

    factors: Mapping[str, object]
    arm: str
    config: ExperimentConfig

    @cached_property
    def id(self) -> str:
        """The beginning of the configuration's fingerprint: equal exactly for cells that compute the same."""
        return self.config.fingerprint[:_LENGTH]

    @property
    def pair(self) -> str:
        """The tasks, in order: the block within which runs resemble one another."""
        return " > ".join(self.config.data.tasks)

    @property
    def place(self) -> CellPlace:
        """The cell's place in its study."""
        return CellPlace(self.id, self.pair, tuple(self.config.data.tasks), dict(self.factors), self.arm)

    @property
    def label(self) -> str:
        """Display name of the cell."""
        varied = [f"{name.rpartition('.')[2]} {value}" for name, value in self.factors.items() if name != TASKS]
        return ", ".join([self.pair, *varied, *([self.arm] if self.arm != DEFAULT_ARM else [])])


@dataclass(frozen=True)
class Plan:
    """Plan of a study: its name, cells in the order of the file, arms in that order, and the analysis decided beforehand.

    `content` is the file as it was read.
    """

    name: str
    cells: tuple[Cell, ...]
    arms: tuple[str, ...]
    analysis: Analysis = field(default_factory=Analysis)
    content: Mapping[str, object] = field(default_factory=dict)


def read_plan(path: Path) -> Plan:
    """The study of a YAML file; UserError names what is unknown, of the wrong kind, or impossible.

    `base` is a preset or a file (relative to the study's), `set` holds sections of fields for every cell, `vary` lists of
    values by dotted path (or `seed`, which stands for every seed) whose combinations are the cells, `arms` named settings with
    which each of them is combined (or only those that agree with its `where`), and `cells` further single cells.
    """
    content = _read(path)
    unknown = sorted(str(name) for name in set(content) - set(_SECTIONS))
    if unknown:
        raise UserError(
            f"{path}: a study has the sections {', '.join(_SECTIONS)}; {', '.join(unknown)} is none of them"
        )
    vary, arms = _vary(content.get("vary"), path), _arms(content.get("arms"), path)
    where = {arm: _where(arm, settings.pop(WHERE, None), vary, path) for arm, settings in arms.items()}
    template, common = _base(content.get("base", "quickstart"), path), _flat(content.get("set") or {}, "set", path)
    single = _single(content.get("cells"), path)
    asked = (math.prod(map(len, vary.values())) + len(single)) * len(arms)
    if asked > MOST_CELLS:
        raise UserError(
            f"{path}: a study may have at most {MOST_CELLS:,} cells, vary, cells and arms ask for {asked:,}"
        )
    cells: dict[str, Cell] = {}
    for factors, arm in itertools.product([*_combinations(vary), *single], arms):
        if all(factors.get(field) == value for field, value in where[arm].items()):
            cell = _cell(template, common, factors, (arm, arms[arm]), path)
            cells.setdefault(cell.id, cell)
    analysis = _analysis(content.get("analysis") or {}, tuple(arms), path)
    return Plan(_name(content, path), tuple(cells.values()), tuple(arms), analysis, content)


def _read(path: Path) -> Fields:
    content = read_yaml(path, "a study")
    if not isinstance(content, dict):
        raise UserError(f"{path}: a study must hold sections such as `vary:`, was {str(content)[:40]!r}")
    return content


def _name(content: Fields, path: Path) -> str:
    """The study's name, which its folder is called by."""
    name = content.get("name") or path.stem
    if not isinstance(name, str | int) or not re.fullmatch(r"[^/\\\s][^/\\\r\n]{0,99}", str(name)):
        raise UserError(
            f"{path}: name must be a line of at most 100 characters without slashes, was {str(name)[:40]!r}"
        )
    return str(name)


def _vary(given: object, path: Path) -> dict[str, list[object]]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(values, list) and values for values in given.values()):
        raise UserError(f"{path}: vary must hold lists of values by dotted path, such as `seed: [0, 1]`")
    for name in given:
        _require_field(name, path)
    return {str(name): list(values) for name, values in given.items()}


def _arms(given: object, path: Path) -> dict[str, Fields]:
    if given is None:
        return {DEFAULT_ARM: {}}
    if not isinstance(given, dict) or not given or not all(isinstance(v, dict | None) for v in given.values()):
        raise UserError(f"{path}: arms must hold settings by name, such as `sam: {{interventions.sam_rho: 0.05}}`")
    arms = {str(name): _method_options(str(name), dict(settings or {})) for name, settings in given.items()}
    for settings in arms.values():
        for name in set(settings) - {WHERE}:
            _require_field(name, path)
    return arms


def _method_options(arm: str, settings: Fields) -> Fields:
    """The settings of an arm; one that is called as a method, and names no dotted path, is that method with these options."""
    own = {name: value for name, value in settings.items() if name != WHERE}
    if any("." in str(name) for name in own) or arm not in method_names():
        return settings
    return {**({WHERE: settings[WHERE]} if WHERE in settings else {}), f"{PATH}.{arm}": own}


def _where(arm: str, given: object, vary: Mapping[str, Sequence[object]], path: Path) -> Fields:
    """The values that a combination must have for `arm`; each must be one of those that are varied."""
    where = {} if given is None else given
    if not isinstance(where, dict) or any(value not in vary.get(name, ()) for name, value in where.items()):
        raise UserError(
            f"{path}: where of the arm {arm} must give values of what is varied, such as `{{seed: 0}}`, was {given!r}"
        )
    return dict(where)


def _require_field(name: str, path: Path) -> None:
    if name != "seed" and name not in dotted_paths() and not names_option(name):
        raise UserError(f"{path}: {name} is no field of the configuration (`llm-forgetting run --help` lists them)")


def _base(name: object, path: Path) -> ConfigTemplate:
    text = str(name)
    try:
        return ConfigTemplate(text if text in PRESETS else str((path.parent / text).resolve()))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _flat(tree: object, section: str, path: Path) -> Fields:
    if not isinstance(tree, dict):
        raise UserError(f"{path}: {section} must hold sections of fields, was {tree!r}")
    fields = dict(leaves(tree))
    for name in fields:
        _require_field(name, path)
    return fields


def _combinations(vary: Mapping[str, Sequence[object]]) -> Iterator[Fields]:
    if vary:
        for values in itertools.product(*vary.values()):
            yield dict(zip(vary, values, strict=True))


def _single(given: object, path: Path) -> list[Fields]:
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise UserError(f"{path}: cells must be a list of settings by dotted path")
    for entry in given:
        for name in entry:
            _require_field(name, path)
    return [dict(entry) for entry in given]


def _cell(template: ConfigTemplate, common: Fields, factors: Fields, arm: tuple[str, Fields], path: Path) -> Cell:
    merged = {**common, **factors, **arm[1]}
    tasks = merged.pop(TASKS, None)
    if tasks is not None and not (isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)):
        raise UserError(f"{path}: {TASKS} must be a list of names, was {str(tasks)[:40]!r}")
    if "seed" in merged:
        merged = {**dict.fromkeys(SEEDS, merged.pop("seed")), **merged}
    try:
        config = template.config(merged, tasks)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Cell({name: value for name, value in factors.items() if name != TASKS}, arm[0], config)


def _analysis(given: object, arms: Sequence[str], path: Path) -> Analysis:
    known = {entry.name for entry in dataclasses.fields(Analysis)}
    if not isinstance(given, dict) or set(given) - known:
        raise UserError(f"{path}: analysis may hold {', '.join(sorted(known))}, was {str(given)[:80]}")
    analysis = from_plain(Analysis, given, file=f"{path}: analysis")
    columns = {*MEASURES, *OUTCOMES}
    named = {
        analysis.primary,
        *analysis.measures,
        analysis.forecast,
        analysis.learning,
        *itertools.chain(*analysis.given),
    }
    if named - columns or analysis.outcome not in OUTCOMES:
        wrong = sorted(named - columns) or [analysis.outcome]
        raise UserError(
            f"{path}: analysis names {', '.join(wrong)}; measures are {', '.join(MEASURES)}, outcomes {', '.join(OUTCOMES)}"
        )
    if analysis.primary not in analysis.measures:
        raise UserError(f"{path}: analysis.primary must be one of analysis.measures, was {analysis.primary}")
    for arm in (*([analysis.baseline] if analysis.baseline else []), *analysis.controls):
        if arm not in arms:
            raise UserError(f"{path}: analysis names the arm {arm}; arms are {', '.join(arms)}")
    return analysis if analysis.baseline else dataclasses.replace(analysis, baseline=arms[0])
