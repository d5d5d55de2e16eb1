"""What the documentation's site needs beside mkdocs: equations as MathML, and pages for what lies outside docs/.

Equations are written as `$...$` and `$$...$$`, which GitHub shows too. Links to files of the repository (`../studies/toy.yaml`)
lead to a page with that file; CHANGELOG.md is a page of its own.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "source"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".jsonl": "json"}
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# As an operator a bar gets an operator's spaces, and stretches.
BAR = re.compile(r"<mo[^>]*>(?:&#x0007C;|\|)</mo>")
LONGEST = 60_000


def outside(link: str, page: str) -> Path | None:
    """The file of the repository, not of docs/, that `link` on docs/`page` names; None where it names none."""
    path = ROOT / posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    inside = path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT)
    return None if inside or not path.is_file() else path


def on_files(files: Any, config: Any) -> Any:
    """Adds the changelog, and a page for every linked file outside docs/."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=changelog))
    linked = {
        path
        for page in files.documentation_pages()
        for link, _ in LINK.findall(page.content_string)
        if (path := outside(link, page.src_uri)) is not None
    }
    for path in sorted(linked):
        files.append(File.generated(config, _page_of(path), content=_shown(path)))
    return files


def _page_of(path: Path) -> str:
    return f"{SOURCE}/{path.relative_to(ROOT).as_posix()}.md"


def _shown(path: Path) -> str:
    """The file in a code block."""
    text = path.read_text(encoding="utf-8")
    rest = ""
    if len(text) > LONGEST:
        text, rest = text[:LONGEST].rpartition("\n")[0], "\n\nThe rest is in the file itself.\n"
    head = f"# {path.name}\n\n`{path.relative_to(ROOT).as_posix()}`\n\n"
    return f"{head}````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````{rest}\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside docs/ lead to their pages."""
    here = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        path = outside(match[1], page.file.src_uri)
        if path is None:
            return match[0]
        return f"]({posixpath.relpath(_page_of(path), here or '.')})"

    return LINK.sub(led, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Equations as MathML, which browsers show without a script."""

    def written(match: re.Match[str]) -> str:
        block = match[2] == "["
        mathml = convert(html.unescape(match[3]).strip(), display="block" if block else "inline")
        mathml = BAR.sub('<mi mathvariant="normal">|</mi>', mathml)
        return f'<div class="equation">{mathml}</div>' if block else mathml

    return ARITHMATEX.sub(written, content)
