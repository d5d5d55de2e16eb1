"""Table of an evaluation on whole test splits."""

from collections.abc import Mapping
from typing import Any

from llm_forgetting.report.tables.run import Table, number, value_and_error


def evaluation_table(content: Mapping[str, Any]) -> Table:
    """A row per subject, and one for every group of several."""
    rows = []
    for task in content["tasks"]:
        for found in task["subjects"]:
            rows.append(
                (
                    found["name"].replace("_", " "),
                    str(found["n"]),
                    _accuracy(found["accuracy"]),
                    value_and_error(found["loss"]["value"], found["loss"]["stderr"]),
                    number(found["letter_mass"]),
                )
            )
        if len(task["subjects"]) > 1:
            rows.append(
                (
                    f"{task['name'].replace('_', ' ')}, all",
                    str(task["accuracy"]["n"]),
                    _accuracy(task["accuracy"]),
                    "",
                    "",
                )
            )
    shots = content["config"]["data"]["few_shot"]
    shortened = sum(found["shortened"] for task in content["tasks"] for found in task["subjects"])
    note = (
        f"{shots}-shot; accuracy ± standard error sd / sqrt(n), groups weighted by size, as in lm-evaluation-harness 0.4.13; "
        "letter mass: probability of the option letters together."
    )
    if shortened:
        note += f" {shortened} prompts were shortened to data.max_tokens."
    return Table("Test accuracy", ("subject", "items", "accuracy", "loss (nats)", "letter mass"), tuple(rows), note)


def _accuracy(found: Mapping[str, Any]) -> str:
    stderr = "" if found["stderr"] is None else f" ± {float(found['stderr']):.4f}"
    return f"{float(found['value']):.4f}{stderr}"
