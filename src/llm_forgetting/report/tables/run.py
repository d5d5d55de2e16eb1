"""The tables of a run, as rows of text: shared by the terminal and results.md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_forgetting.arrays import settled
from llm_forgetting.forgetting.intervals import MINIMUM_ITEMS

SPLIT_WORDS = {"train": "trained", "test": "held-out"}


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of text, and a note below."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def display_name(name: str) -> str:
    """A checkpoint's or task's name for people."""
    return {"initial": "base model"}.get(name, name.replace("after_task", "after task ").replace("_", " "))


spoken = display_name


def number(value: float | str | None, digits: int = 2) -> str:
    """A number to `digits` decimals; "-" for none, "inf" and "nan" spelt out."""
    if value is None:
        return "-"
    value = float(value)
    return f"{value:z.{digits}f}" if math.isfinite(value) else str(value)


def measured(value: float | str) -> str:
    """A number to two decimals, or to two digits where it is smaller than that can show."""
    value = settled(float(value))
    return f"{value:.2g}" if 0 < abs(value) < 0.095 else number(value)


def value_and_error(value: float | str, stderr: float | str | None) -> str:
    """`0.038 ± 0.006`: one digit of the error (two if it begins with 1), and the value to the same decimal.

    An error of 0, or of rounding's size (all items alike), is no measure of precision, so the value then stands alone.
    """
    value, error = settled(float(value)), 0.0 if stderr is None else settled(float(stderr))
    if error == 0:
        return number(value)
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{number(value)} ± {number(error)}"
    exponent = math.floor(math.log10(error))
    leading = error / 10**exponent
    decimals = max(0, (1 if leading < 1.95 else 0) - exponent)
    return f"{value:z.{decimals}f} ± {error:.{decimals}f}"


def eigenvalue_text(found: Mapping[str, Any]) -> str:
    """A Ritz value, with its residual where that shows."""
    value, residual = settled(float(found["value"])), float(found["residual"])
    return f"{value:.3g}" if residual < 5e-3 * abs(value) else value_and_error(value, residual)


def _with_error(estimate: Mapping[str, Any], digits: int) -> str:
    """value, and its interval or else its standard error."""
    if estimate["value"] is None:
        return "-"
    text = number(estimate["value"], digits)
    if estimate.get("interval"):
        return f"{text} [{number(estimate['interval']['low'], digits)}, {number(estimate['interval']['high'], digits)}]"
    return value_and_error(estimate["value"], estimate["stderr"]) if estimate.get("stderr") is not None else text


def accuracy_matrix(results: Mapping[str, Any]) -> Table:
    """R[i, j]: a row per task and split, a column per checkpoint, accuracy and loss in each cell."""
    rows = []
    for j, name in enumerate(results["task_names"]):
        for split, word in SPLIT_WORDS.items():
            cells = results["forgetting"][split]
            pairs = zip(cells["accuracy"]["cells"], cells["loss"]["cells"], strict=True)
            scores = [f"{number(a[j]['value'])} / {number(b[j]['value'])}" for a, b in pairs]
            rows.append((f"{display_name(name)}, {word}", str(cells["accuracy"]["cells"][0][j]["n"]), *scores))
    checkpoints = [display_name(name) for name in results["forgetting"]["train"]["checkpoints"]]
    note = "trained items were fine-tuned on, held-out items never."
    return Table("Accuracy / loss in nats", ("task", "items", *checkpoints), tuple(rows), note)


def forgetting_table(results: Mapping[str, Any]) -> Table:
    """Every earlier task's forgetting, on both splits."""
    rows = []
    for split, word in SPLIT_WORDS.items():
        cells = results["forgetting"][split]
        for accuracy, loss in zip(cells["accuracy"]["tasks"], cells["loss"]["tasks"], strict=True):
            rows.append(
                (
                    f"{display_name(accuracy['name'])}, {word}",
                    str(accuracy["n"]),
                    counts(accuracy["change"]) or _with_error(accuracy["absolute"], 2),
                    _percent(accuracy["relative"]["value"]),
                    _percent(accuracy["normalised"]["value"]),
                    number(loss["absolute"]["value"]) if _too_few(accuracy["n"]) else _with_error(loss["absolute"], 2),
                )
            )
    seen = [entry["said"] for split in SPLIT_WORDS for entry in results["forgetting"][split]["detectable"]]
    header = ("task", "items", "accuracy lost", "of level", "of learnt", "loss gained (nats)")
    note = (
        f"brackets: 95% interval over items; below {MINIMUM_ITEMS} items only counts of right answers, before and after; "
        f"of learnt: share of the gain over the base model that was lost; one seed. {_sentence('; '.join(seen))}"
    )
    return Table("Forgetting", header, tuple(rows), note)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _too_few(items: int) -> bool:
    return items < MINIMUM_ITEMS


def counts(change: Mapping[str, Any]) -> str:
    """`9 to 4 of 10` where there are too few items for an interval, else nothing."""
    before, after = (change["both"] + change[key] for key in ("only_before", "only_after"))
    return f"{before} to {after} of {change['n']}" if _too_few(change["n"]) else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def summary_table(results: Mapping[str, Any]) -> Table:
    """Average accuracy, backward transfer, Chaudhry's measure and forward transfer."""
    names = {
        "average": "average after the last task",
        "backward_transfer": "backward transfer",
        "forgetting_measure": "forgetting measure (Chaudhry)",
        "forward_transfer": "forward transfer",
    }
    rows = []
    for split, word in SPLIT_WORDS.items():
        cells = results["forgetting"][split]
        few = any(_too_few(cell["n"]) for cell in cells["accuracy"]["cells"][0])
        for key, label in names.items():
            pair = cells["accuracy"][key], cells["loss"][key]
            said = [number(entry["value"]) if few else _with_error(entry, 2) for entry in pair]
            rows.append((f"{label}, {word}", *said))
    return Table("Over all tasks", ("measure", "accuracy", "loss (nats)"), tuple(rows))


def landscape_table(results: Mapping[str, Any]) -> Table:
    """The numbers of every surface."""
    rows = []
    for checkpoint, landscape in results["landscapes"].items():
        for task, surface in landscape["surfaces"].items():
            m = surface["metrics"]
            numbers = (m[name] for name in ("centre", "maximum", "standard_deviation", "range"))
            rows.append(
                (
                    f"{display_name(task)}, {display_name(checkpoint)}",
                    *(measured(value) for value in numbers),
                    _fit_error(surface["error"], landscape["fit"]),
                )
            )
    header = ("loss of", "centre", "max.", "s.d.", "range", "error")
    first = next(iter(results["landscapes"].values()))
    note = (
        f"{_SPACES[first['space']]}, distance {first['distance']:g}; {_how_made(list(results['landscapes'].values()))}."
    )
    notes = [
        f"{display_name(name)}: {entry['note']}." for name, entry in results["landscapes"].items() if entry["note"]
    ]
    return Table("Loss landscape (nats)", header, tuple(rows), " ".join([note, *notes]))


_SPACES = {
    "adapter": "adapter space (invariant under LoRA's GL(r))",
    "weight": "weight space (filter-normalised directions)",
    "raw": "raw space (another gauge of the same adapter has another landscape)",
}


def _how_made(landscapes: Sequence[Mapping[str, Any]]) -> str:
    """Where the cells of the surfaces come from, and what the column "error" is."""
    fits = [landscape["fit"] for landscape in landscapes if landscape["fit"] is not None]
    grids = sorted({len(landscape["alphas"]) for landscape in landscapes if landscape["fit"] is None})
    said = [f"{cells} x {cells} cells, each evaluated" for cells in grids]
    if fits:
        cells = max(len(landscape["alphas"]) for landscape in landscapes if landscape["fit"] is not None)
        spent = " or ".join(str(count) for count in sorted({fit["evaluations"] for fit in fits}))
        said.append(
            f"{cells} x {cells} cells from a fit to {spent} evaluations; error: the largest at random points that the fit had "
            f"not seen ({fits[0]['check_points']} or more), as a share of the range (at most 2 nats), asked for "
            f"{share(fits[0]['tolerance'])}"
        )
    return "; ".join(said)


def _fit_error(error: Mapping[str, Any] | None, fit: Mapping[str, Any] | None) -> str:
    """`0.3%`, `24%, not converged`, or "-" where nothing was fitted."""
    if error is None or fit is None:
        return "-"
    converged = float(error["relative"]) <= float(fit["tolerance"])
    return f"{share(error['relative'])}{'' if converged else ', not converged'}"


def share(value: float | str) -> str:
    """A share in percent, with a decimal or a digit where it is small."""
    percent = 100 * settled(float(value))
    if 0 < abs(percent) < 0.095:
        return f"{percent:.1g}%"
    return f"{percent:.1f}%".replace(".0%", "%") if abs(percent) < 9.95 else f"{percent:.0f}%"


def flatness_table(results: Mapping[str, Any]) -> Table:
    """What says how sharp every surface is at its checkpoint."""
    rows = []
    for checkpoint, landscape in results["landscapes"].items():
        for task, surface in landscape["surfaces"].items():
            m, rise, basin = surface["metrics"], surface["mean_rise"], surface["lines"]["basin_radius"]
            error = m["curvature_centre_error"]
            rows.append(
                (
                    f"{display_name(task)}, {display_name(checkpoint)}",
                    measured(m["curvature_centre"]) if error is None else value_and_error(m["curvature_centre"], error),
                    value_and_error(rise["value"], rise["stderr"]),
                    f"{landscape['distance']:g} or more" if basin["value"] is None else number(basin["value"]),
                    share(m["share_within"]),
                )
            )
    first = next(iter(results["landscapes"].values()))
    surface = next(iter(first["surfaces"].values()))
    tau = surface["lines"]["basin_radius"]["tau"]
    header = ("loss of", "curvature", "mean rise", "basin radius", "share of plane")
    note = (
        f"curvature: largest |eigenvalue| at the centre, its error what the fit's last degree changed; mean rise at "
        f"distance {first['distance']:g} over {surface['mean_rise']['directions']} directions, with its standard error; basin "
        f"radius: how far their mean loss stays within {tau:g} nats of the centre's; share of plane: how much of it does."
    )
    return Table("Flatness (nats)", header, tuple(rows), note)


def between_table(results: Mapping[str, Any]) -> Table:
    """The loss on the way from each checkpoint to the next, and the point that keeps all tasks best."""
    rows = []
    for path in results["paths"]:
        best = path["repair"]
        for task, found in path["tasks"].items():
            rows.append(
                (
                    f"{display_name(task)}, {display_name(path['from'])} to {display_name(path['to'])}",
                    *(number(loss) for loss in (found["loss"][0], best["loss"][task], found["loss"][-1])),
                    measured(found["barrier"]["value"]),
                    number(found["barrier"]["at"]),
                    _fit_error(found["error"], path),
                )
            )
    header = ("loss of, on the way", "at t = 0", "at t*", "at t = 1", "barrier", "there", "error")
    notes = [
        "t = 0: the earlier checkpoint, t = 1: the later; barrier: the most that the loss rises above the straight line "
        "between its two ends, and where."
    ]
    for path in results["paths"]:
        best, way = path["repair"], f"{display_name(path['from'])} to {display_name(path['to'])}"
        chosen = " + ".join(map(str, best["selection_items"]))
        notes.append(
            f"{way}: t* = {number(best['t'])} has the least mean loss of the tasks on {chosen} items; {path['evaluations']} "
            f"evaluations."
        )
    plane = results["checkpoint_plane"]
    if plane is not None:
        errors = [
            f"{display_name(task)} {_fit_error(found['error'], plane['fit'])}"
            for task, found in plane["surfaces"].items()
        ]
        names = ", ".join(map(spoken, plane["checkpoints"]))
        notes.append(f"plane through {names}: {plane['fit']['evaluations']} evaluations, error {'; '.join(errors)}.")
    notes += [f"{sentence}." for sentence in results["between_notes"]]
    return Table("Between the checkpoints (nats)", header, tuple(rows), " ".join(notes))


def comparison_table(results: Mapping[str, Any]) -> Table:
    """How every task's surface changed between checkpoints."""
    words = {True: "sharper", False: "flatter", None: "no difference shown"}
    rows = tuple(
        (
            f"{display_name(entry['task'])}, {display_name(entry['before'])} to {display_name(entry['after'])}",
            value_and_error(entry["mean_rise"]["change"], entry["mean_rise"]["stderr"]),
            measured(entry["metrics"]["curvature_centre"]["change"]),
            measured(entry["metrics"]["centre"]["change"]),
            words[entry["sharper"]],
        )
        for entry in results["landscape_comparison"]
    )
    header = ("surface", "mean rise", "curvature", "centre", "verdict (2 stderr)")
    return Table("Change of the landscape (nats)", header, rows)
