"""Which file may import which: floors, walls and forbidden libraries, checked over the whole import graph at once."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import ROOT

PACKAGE = ROOT / "src" / "llm_forgetting"

# From the ground up. A package imports only from floors below its own, and everybody may import errors.
FLOORS = (
    ("errors", "seeding", "progress", "arrays", "files"),
    ("tasks", "landscape", "forgetting", "engines"),
    ("config", "curvature"),
    ("models", "results"),
    ("training", "report"),
    ("experiment",),
    ("study",),
    ("cli",),
    ("__main__",),
)
# What a package may import besides its own files, where that is less than all floors below.
WALLS = {
    "config": ("errors", "files", "arrays", "tasks.sources"),
    "tasks": ("errors", "seeding", "progress", "arrays", "files"),
    "landscape": ("errors", "seeding", "progress", "arrays", "files"),
    "forgetting": ("errors", "seeding", "arrays", "files"),
    "engines": ("errors", "files"),
    "curvature": ("errors", "seeding", "progress", "arrays", "files", "landscape"),
    "models.any_module": (
        "errors", "seeding", "progress", "arrays", "files", "landscape", "curvature", "models.adapter", "models.hessian",
    ),
    "report": (
        "errors", "arrays", "files", "progress", "forgetting", "landscape.metrics", "landscape.records",
        "landscape.between_records", "landscape.results", "curvature.records", "curvature.results", "results",
    ),
}  # fmt: skip
NUMERICS = {"numpy", "scipy", "safetensors", "torch", "pydantic", "pydantic_core"}
# The only importers of a library.
LIBRARIES = {
    "peft": ("models.adapter",),
    "ray": ("engines.ray",),
    "submitit": ("engines.slurm",),
    "transformers": (
        "models",
        "training",
        "experiment.artifacts.logs",
        "experiment.artifacts.trackers",
        "experiment.cost",
    ),
}
# Modules that never import torch, and modules that do so only inside functions.
NEVER_TORCH = (
    "config", "forgetting", "report", "results", "arrays", "files", "experiment.artifacts.run_folder",
)  # fmt: skip
NO_TORCH_AT_IMPORT = (
    *NEVER_TORCH, "errors", "seeding", "progress", "cli", "study", "tasks", "engines",
    "experiment.api", "experiment.run_results", "experiment.artifacts.logs", "experiment.artifacts.provenance",
    "experiment.tasks", "experiment.questions", "curvature.results", "landscape.metrics", "landscape.spectral",
    "landscape.domains",
)  # fmt: skip
TORCH_AT_IMPORT_ALL_THE_SAME = ("study.study",)  # it asks experiment.cost
HEAVY = {"torch", "transformers", "peft", "accelerate", "safetensors"}


@dataclass(frozen=True)
class Import:
    """`module` imports `target`, a full name; `at_once`: as soon as it is imported itself."""

    module: str
    target: str
    at_once: bool

    @property
    def own(self) -> str | None:
        """The target inside this package, without the package's name."""
        package, _, inside = self.target.partition(".")
        return inside if package == "llm_forgetting" and inside else None

    @property
    def foreign(self) -> str | None:
        """The foreign package that is imported."""
        package = self.target.partition(".")[0]
        return None if package == "llm_forgetting" else package


def within(module: str, parts: tuple[str, ...] | Mapping[str, object]) -> bool:
    """Whether `module` is one of `parts` or stands in one."""
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def floor(module: str) -> int | None:
    return next((number for number, parts in enumerate(FLOORS) if module.partition(".")[0] in parts), None)


def violations(graph: list[Import]) -> list[str]:
    """Every import that the floors and walls do not allow, as a sentence."""
    return [f"{edge.module} imports {edge.target}: {reason}" for edge in graph for reason in reasons(edge)]


def reasons(edge: Import) -> Iterator[str]:
    module, own, foreign = edge.module, edge.own, edge.foreign
    if own is not None:
        room, other = module.partition(".")[0], own.partition(".")[0]
        here, there = floor(module), floor(own)
        if here is None or there is None:
            yield "one of them has no floor"
        elif room != other and there >= here and own != "errors":
            yield "it stands no higher"
        for walled, allowed in WALLS.items():
            if within(module, (walled,)) and not within(own, (walled, *allowed)):
                yield f"{walled} is walled off from it"
    if foreign is not None:
        if within(module, ("landscape", "curvature")) and foreign not in NUMERICS | set(sys.stdlib_module_names):
            yield "numerics know numpy, scipy, torch and safetensors"
        if foreign in LIBRARIES and not within(module, LIBRARIES[foreign]):
            yield f"only {', '.join(LIBRARIES[foreign])} know {foreign}"
        if foreign in HEAVY:
            if within(module, NEVER_TORCH):
                yield "it must run without torch"
            elif edge.at_once and within(module, NO_TORCH_AT_IMPORT) and module not in TORCH_AT_IMPORT_ALL_THE_SAME:
                yield "importing it must not import torch"


def circles(graph: list[Import]) -> list[list[str]]:
    """Packages that import one another, whenever they do so."""
    below: dict[str, set[str]] = {}
    for edge in graph:
        if edge.own is not None and edge.own.partition(".")[0] != edge.module.partition(".")[0]:
            below.setdefault(edge.module.partition(".")[0], set()).add(edge.own.partition(".")[0])

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in below.get(waiting.pop(), set()) - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    return [[start] for start in below if start in reached(start)]


def import_graph() -> list[Import]:
    """Every import of every file of the package."""
    return [
        edge for path in sorted(PACKAGE.rglob("*.py")) for edge in imports_of(path) if path != PACKAGE / "__init__.py"
    ]


def imports_of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    at_once = {id(node) for statement in tree.body if not _is_late(statement) for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, id(node) in at_once)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path} imports relatively"  # noqa: PT018
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = PACKAGE.parent.joinpath(*full.split("."))
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                yield Import(module, full if is_module else node.module, id(node) in at_once)


def _is_late(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.ClassDef) or (
        isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
    )


def test_the_package_stands_on_its_floors_and_behind_its_walls() -> None:
    graph = import_graph()
    assert len(graph) > 500
    assert violations(graph) == []
    assert circles(graph) == []
    rooms = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == {part for parts in FLOORS for part in parts}


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("landscape.scan", "llm_forgetting.models.language.objective"),  # upwards
        ("training.fine_tuning", "llm_forgetting.report.rows"),  # the same floor
        ("attic.old", "llm_forgetting.errors"),  # no floor
        ("forgetting.measures", "llm_forgetting.config.sections"),  # a wall
        ("report.rows", "llm_forgetting.landscape.scan"),  # a wall that lets one file through
        ("landscape.scan", "transformers"),
        ("study.cell", "peft"),
        ("report.rows", "torch"),
        ("cli.main", "torch"),
    ],
)  # fmt: skip
def test_a_violation_of_each_kind_is_found(module: str, target: str) -> None:
    assert violations([Import(module, target, at_once=True)])


def test_a_circle_is_found() -> None:
    there, back = (
        Import("study.cell", "llm_forgetting.cli.main", True),
        Import("cli.main", "llm_forgetting.study.cell", True),
    )
    assert circles([there, back])
    assert not circles([back])


def test_late_imports_of_torch_are_allowed_where_early_ones_are_not() -> None:
    assert violations([Import("cli.main", "torch", at_once=True)])
    assert not violations([Import("cli.main", "torch", at_once=False)])
    assert violations([Import("report.rows", "torch", at_once=False)])


@pytest.mark.process
def test_what_needs_no_torch_runs_where_there_is_none() -> None:
    modules = sorted({edge.module for edge in import_graph() if within(edge.module, NO_TORCH_AT_IMPORT)})
    modules = [module for module in modules if module not in TORCH_AT_IMPORT_ALL_THE_SAME]
    program = "\n".join(
        [
            "import sys, importlib",
            "class Wall:",
            "    def find_spec(self, name, path=None, target=None):",
            "        if name in ('torch', 'transformers', 'peft', 'accelerate'): raise ModuleNotFoundError(name)",
            "sys.meta_path.insert(0, Wall())",
            f"for name in {modules!r}: importlib.import_module('llm_forgetting.' + name)",
        ]
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "HOME": ""}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_nothing_reads_or_writes_pickles() -> None:
    pickles = {"pickle", "cPickle", "dill", "joblib", "shelve", "cloudpickle", "marshal"}
    for path in [*PACKAGE.rglob("*.py"), ROOT / "main.py", *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                )
                assert not {name.split(".")[0] for name in names} & pickles, path
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
                assert ast.unparse(node.value) not in ("torch", "np", "numpy"), f"{path}, line {node.lineno}"
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", f"{path}, line {node.lineno}"
