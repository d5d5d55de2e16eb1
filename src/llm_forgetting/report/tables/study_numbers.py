"""How numbers of study.json are written."""

from collections.abc import Mapping

from llm_forgetting.files import Json
from llm_forgetting.report.tables.run import p_text

Study = Mapping[str, Json]
"""What study.json holds, or an object in it."""


def units(numbers: Study) -> str:
    """How many task pairs, or first tasks where pairs share them."""
    if numbers.get("unit") == "first task":
        return f"{numbers['n_units']} first task{'s' * (numbers['n_units'] != 1)}"
    return f"{numbers['n_pairs']} pairs"


def coefficient(estimate: Study | None) -> str:
    """A value with its sign and interval; "-" where there is none."""
    if estimate is None or estimate["value"] is None:
        return "-"
    return with_interval(estimate["value"], estimate["interval"])


def with_interval(value: float, interval: Study | None, *, signed: bool = True) -> str:
    """A value and its interval, with two decimals."""
    style = "+z.2f" if signed else "z.2f"
    text = f"{float(value):{style}}"
    return text if interval is None else f"{text} [{float(interval['low']):{style}}, {float(interval['high']):{style}}]"


def p_number(value: float) -> str:
    """A p-value without its equals sign."""
    return p_text(value).removeprefix("= ")
