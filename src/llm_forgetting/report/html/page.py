"""A page as one HTML file: styles, scripts and plotly.js inside, and a policy that forbids every request."""

import math
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from llm_forgetting.files import Json
from llm_forgetting.report.html.blocks import Figures, Page, Plot


def render(page: Page) -> str:
    """The whole file. plotly.js is left out where nothing is plotted."""
    plotted = any(isinstance(block, Figures) and block.plots for section in page.sections for block in section.blocks)
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            style=_trusted("style.css"),
            script=_trusted("report.js"),
            plotly=_plotly() if plotted else "",
        )
    )


def _asset(name: str) -> str:
    return resources.files("llm_forgetting.report.html").joinpath("assets", name).read_text(encoding="utf-8")


def _trusted(name: str) -> Markup:
    """An asset of this package, which is part of the page and is not escaped."""
    return Markup(_asset(name))


def _plotly() -> Markup:
    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def _spec(plot: Plot) -> dict[str, object]:
    spec = {"alt": plot.alt, "data": _finite(plot.data), "layout": _finite(plot.layout)}
    return spec if plot.alike is None else {**spec, "alike": _spec(plot.alike)}


def _finite(value: Json) -> Json:
    """`value` with None for every number that is not finite: JSON has no such numbers, and plotly leaves a gap."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _environment() -> Environment:
    """Every text is escaped, and a name that is misspelt in a template is an error."""
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["spec"] = _spec
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment
