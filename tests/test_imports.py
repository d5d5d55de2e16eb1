"""Which file may import which: the floors of the package, walked in the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from runs import ROOT

PACKAGE = ROOT / "src" / "llm_forgetting"

# From the ground up. A file imports only from floors below its own (files of one folder may import one another).
FLOORS = (
    ("config_rules", "errors", "metering", "progress", "rounding", "seeding"),
    ("artifacts", "command_line", "comparison", "config", "covered_lora", "objective", "statistics", "transfer"),
    ("config_files", "eigenvalues", "forgetting", "landscape"),
    ("krylov",),
    ("perturbation", "results", "rows", "saved_adapter", "spurious", "study_statistics", "tasks", "verdict"),
    ("adapted_model", "configured_tasks", "report", "summary", "trackers"),
    ("backbones", "batches", "model_cards", "own_models", "questions"),
    ("packing",),
    ("language_model", "scoring_batches"),
    ("answer_loss", "evaluation", "unrelated_text"),
    ("curvature", "guards", "interventions", "item_records", "landscape_objective"),
    ("curvature_analysis", "landscape_analysis", "session", "training"),
    ("between_checkpoints", "evaluate_adapter"),
    ("phases",),
    ("estimate", "experiment", "repair", "scan_adapter", "terminal"),
    ("study",),
    ("api",),
    ("cli_scan", "cli_study"),
    ("cli_report",),
    ("cli",),
    ("__main__",),
)
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)
WITHOUT_TORCH = (
    "artifacts", "comparison", "config", "config_files", "config_rules", "configured_tasks",
    "cli", "cli_report", "cli_scan", "cli_study", "command_line", "covered_lora",
    "eigenvalues", "errors", "forgetting",
    "landscape.domains", "landscape.metrics", "landscape.spectral", "metering", "objective", "progress",
    *(module for module in MODULES if module.partition(".")[0] in ("report", "study_statistics", "tasks")),
    *(f"study.{part}" for part in ("analysis", "cell", "engines", "halves", "measures", "plan", "run", "writing")),
    *(f"api.{part}" for part in ("display", "experiment", "run_results", "settings", "study")),
    "model_cards", "questions", "results", "rounding", "rows", "seeding", "spurious", "statistics", "summary", "transfer",
    "verdict",
)  # fmt: skip


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module by its full name, and whether it is imported as soon as the file is."""
    at_once = {id(node) for statement in tree_of(path).body if not _is_late(statement) for node in ast.walk(statement)}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in at_once
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inside = node.module == "llm_forgetting" or path_of_full(f"{node.module}.{alias.name}") is not None
                yield f"{node.module}.{alias.name}" if inside else node.module, id(node) in at_once


def path_of_full(name: str) -> Path | None:
    module = name.removeprefix("llm_forgetting.")
    found = path_of(module) if module != name else None
    return found if found is not None and found.is_file() else None


def _is_late(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.ClassDef) or (
        isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test)
    )


def own_imports(module: str) -> set[str]:
    """The package's own modules that `module` imports anywhere, functions included."""
    names = {name for name, _ in imports(path_of(module))}
    return {name.removeprefix("llm_forgetting.") for name in names if name.startswith("llm_forgetting.")}


def foreign_imports(module: str, *, only_at_once: bool = False) -> set[str]:
    """The other packages that `module` imports."""
    found = {name.split(".")[0] for name, at_once in imports(path_of(module)) if at_once or not only_at_once}
    return found - {"llm_forgetting"}


def floor(module: str) -> int:
    part = module.partition(".")[0]
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def test_every_file_has_a_floor_and_every_floor_a_file() -> None:
    assert {module.split(".")[0] for module in MODULES} == {part for parts in FLOORS for part in parts}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_from_a_floor_that_is_not_below(module: str) -> None:
    for other in own_imports(module):
        same_folder = "." in module and module.partition(".")[0] == other.partition(".")[0]
        assert same_folder or floor(other) < floor(module), f"{module} imports {other}"


def test_only_adapted_model_knows_peft() -> None:
    assert [module for module in MODULES if "peft" in foreign_imports(module)] == ["adapted_model"]


def test_landscapes_know_no_language_model() -> None:
    for module in (module for module in MODULES if module.startswith("landscape.")):
        assert own_imports(module) <= {
            "errors",
            "seeding",
            "objective",
            *(m for m in MODULES if m.startswith("landscape.")),
        }
        assert foreign_imports(module) - set(sys.stdlib_module_names) <= {"numpy", "safetensors", "scipy", "torch"}


def test_reports_are_made_from_artifacts_alone() -> None:
    allowed = {
        "results",
        "artifacts",
        "statistics",
        "forgetting",
        "comparison",
        "objective",
        "landscape.metrics",
        "eigenvalues",
        "rounding",
    }
    for module in (module for module in MODULES if module.startswith("report.")):
        assert own_imports(module) <= allowed | {m for m in MODULES if m.startswith("report.")}


def test_what_says_it_needs_no_torch_imports_none() -> None:
    for module in WITHOUT_TORCH:
        assert not foreign_imports(module, only_at_once=True) & {
            "torch",
            "transformers",
            "peft",
            "safetensors",
            "accelerate",
        }
    reports = [module for module in MODULES if module.startswith("report.")]
    for module in ("artifacts", "comparison", "forgetting", *reports, "results", "statistics"):
        assert not foreign_imports(module) & {"torch", "transformers", "peft", "safetensors", "accelerate"}


def test_what_says_it_needs_no_torch_runs_where_there_is_none() -> None:
    program = "\n".join(
        [
            "import sys, importlib",
            "class Wall:",
            "    def find_spec(self, name, path=None, target=None):",
            "        if name in ('torch', 'transformers', 'peft', 'accelerate'): raise ModuleNotFoundError(name)",
            "sys.meta_path.insert(0, Wall())",
            f"for name in {WITHOUT_TORCH!r}: importlib.import_module('llm_forgetting.' + name)",
        ]
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "", "HOME": ""}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_nothing_reads_or_writes_pickles() -> None:
    programs = [*PACKAGE.rglob("*.py"), ROOT / "main.py", *(ROOT / "scripts").glob("*.py")]
    assert len(programs) > len(MODULES)
    for path in programs:
        names = {name.split(".")[0] for name, _ in imports(path)}
        assert not names & {"pickle", "cPickle", "dill", "joblib", "shelve", "cloudpickle", "marshal"}, path
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
                assert ast.unparse(node.value) not in ("torch", "np", "numpy"), f"{path}, line {node.lineno}"
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", f"{path}, line {node.lineno}"
