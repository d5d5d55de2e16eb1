"""docs/ and README.md: links lead somewhere, every page is in the nav, commands exist, all names are in the reference.

Nothing of what builds the site is needed.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT

import llm_forgetting
from llm_forgetting.cli.adapters import parse_evaluation, parse_landscape
from llm_forgetting.cli.main import main
from llm_forgetting.cli.pairs import parse_pair_forecast
from llm_forgetting.cli.run import parse_run
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = {"changelog.md"}  # made of CHANGELOG.md by scripts/mkdocs_hook.py
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = ("run", "repair", "landscape", "forecast", "study", "report", "compare", "check", "evaluate", "tasks")

PARSERS = {"landscape": parse_landscape, "forecast": parse_pair_forecast, "evaluate": parse_evaluation}


def shown(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """What `#...` may name: headings as mkdocs and GitHub call them, and names of the reference."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return slugs | set(DIRECTIVE.findall(text))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=shown)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def nav_pages(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from nav_pages(part)


def test_every_page_is_in_the_nav_once() -> None:
    pages = list(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(pages) == sorted({page.relative_to(DOCS).as_posix() for page in PAGES} | GENERATED)


def test_the_reference_has_every_public_name_once() -> None:
    named = [name for page in (DOCS / "reference").glob("*.md") for name in DIRECTIVE.findall(page.read_text("utf-8"))]
    public = [name.removeprefix("llm_forgetting.") for name in named if name.count(".") == 1]
    assert sorted(public) == sorted(llm_forgetting.__all__), (
        "docs/reference/api.md needs a line `::: llm_forgetting.NAME` for every name of llm_forgetting.__all__"
    )


def test_the_reference_has_every_section_of_the_configuration() -> None:
    page = (DOCS / "reference/configuration.md").read_text(encoding="utf-8")
    sections = [(field.name, field.default_factory.__name__) for field in dataclasses.fields(ExperimentConfig)]  # type: ignore[union-attr]
    assert re.findall(r"^## (\w+)\n\n::: llm_forgetting\.config\.(\w+)$", page, re.MULTILINE) == sections


def commands() -> list[tuple[str, str]]:
    """Every `llm-forgetting ...` command of a shell block, in one line, with its page."""
    found = []
    for page in [*PAGES, ROOT / "README.md"]:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            lines = block.replace("\\\n", " ").splitlines() if language in ("bash", "sh") else []
            found += [(shown(page), line.strip()) for line in lines if line.strip().startswith("llm-forgetting ")]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_has_options_that_exist(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, command, *arguments = shlex.split(line.replace(" ...", ""), comments=True)
    assert command in COMMANDS
    monkeypatch.chdir(ROOT)
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    if command in PARSERS:
        PARSERS[command](arguments)
    elif command == "run" and not {"--resume", "my.yaml", "config.yaml"} & set(arguments):
        parse_run(arguments)
    else:
        options = set(re.findall(r"--[\w.-]+", help_of(command)))
        assert set(given) <= options


def help_of(command: str) -> str:
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as text, pytest.raises((SystemExit, UserError)):
        {"run": parse_run}.get(command, lambda arguments: main([command, *arguments]))(["--help"])
    return text.getvalue()
