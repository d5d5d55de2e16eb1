"""Whole runs: what they leave behind, that it is right, and that killing one changes nothing."""

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import THOROUGH, TINY, Finished, Moment, Shell, SmokeRun, read_results, same_results
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_forgetting.config.files import dotted_paths
from llm_forgetting.config.paths import to_dict
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment import publish as publication
from llm_forgetting.experiment.artifacts.provenance import SCHEMA_VERSION
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.experiment import run_experiment
from llm_forgetting.files import decode_lines, encode, from_plain
from llm_forgetting.forgetting.records import Line
from llm_forgetting.forgetting.summary import summarise
from llm_forgetting.models.adapter.adapted_model import AdaptedModel
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.progress import Silent
from llm_forgetting.results import read_items
from llm_forgetting.results import read_results as read_run

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # of PEFT, about transformers

CHECKPOINTS = ("initial", "after_task1", "after_task2")
SPLITS = ("train", "test")
PICKLE_OPCODES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def schema() -> Any:
    return json.loads(
        resources.files("llm_forgetting").joinpath("data/results.schema.json").read_text(encoding="utf-8")
    )


def figure_names(checkpoints: Sequence[str], tasks: Sequence[str]) -> set[str]:
    """Stems of everything that is drawn."""
    surfaces = {f"landscape_{c}_{t}_{kind}" for c in checkpoints for t in tasks for kind in ("contour", "3d")}
    others = {f"landscape_{name}" for name in ("overview", "checkpoint_plane", "path", "lines")}
    return others | surfaces | {"accuracy_matrix"}


def mistakes(results: dict[str, Any]) -> list[str]:
    found = jsonschema.Draft202012Validator(schema()).iter_errors(results)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def mistakes_in(field: str, value: Any) -> list[str]:
    """Of one field of results.json; the whole of it takes a while."""
    part = {"$defs": schema()["$defs"], **schema()["properties"][field]}
    return [error.message for error in jsonschema.Draft202012Validator(part).iter_errors(value)]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()]


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of items scored at the run's own checkpoints."""
    return [line for line in lines(folder) if line["split"] in SPLITS and line["checkpoint"] in CHECKPOINTS]


# --- what a run leaves behind -------------------------------------------------------------------------------------------


def test_everything_that_was_promised_is_there(smoke_run: SmokeRun) -> None:
    stems = figure_names(CHECKPOINTS[1:], ("synthetic_1", "synthetic_2"))
    assert smoke_run.path.name.startswith("experiment_")
    files = {path.name for path in smoke_run.path.iterdir()}
    assert files == {
        ".lock", "checkpoint_after_task1", "checkpoint_after_task2", "config.yaml", "items.jsonl", "manifest.json",
        "phases", "report.html", "results.json", "results.md", "run.log",
        *(f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")),
    }  # fmt: skip
    assert set(smoke_run.results["figures"]) == {f"{stem}.png" for stem in stems}
    assert {path.name for path in (smoke_run.path / "phases").iterdir()} == {
        f"{name}.json" for name in ("setup", "guards", *(f"evaluate_{c}" for c in CHECKPOINTS), "train_task1", "train_task2",
                                    "landscape_after_task1", "landscape_after_task2", "forgetting", "between_checkpoints",
                                    "forecast", "comparison", "recovery")
    }  # fmt: skip


def test_every_phase_is_announced_once_and_in_order(smoke_run: SmokeRun) -> None:
    numbers = [int(line[1:3]) for line in smoke_run.stdout.splitlines() if line.startswith("[") and line[3] == "/"]
    assert numbers == list(range(1, 11))
    assert smoke_run.results["answer"] in " ".join(smoke_run.stdout.replace("│", " ").split())


def test_every_figure_is_a_whole_picture(smoke_run: SmokeRun) -> None:
    for name in smoke_run.results["figures"]:
        with Image.open(smoke_run.path / name) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 200
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
        pdf = (smoke_run.path / name).with_suffix(".pdf").read_bytes()
        assert pdf.startswith(b"%PDF-")
        assert pdf.rstrip().endswith(b"%%EOF")


def test_nothing_is_a_pickle(smoke_run: SmokeRun) -> None:
    for path in smoke_run.path.rglob("*"):
        if path.is_file():
            assert path.suffix in (
                ".json",
                ".jsonl",
                ".md",
                ".yaml",
                ".log",
                ".html",
                ".png",
                ".pdf",
                ".safetensors",
                "",
            ), path
            assert not zipfile.is_zipfile(path), path
            assert not path.read_bytes().startswith(PICKLE_OPCODES), path


def test_nothing_temporary_stays(smoke_run: SmokeRun) -> None:
    hidden = [path for path in smoke_run.path.rglob("*") if path.name.startswith(".")]
    assert hidden == [smoke_run.path / ".lock"]
    assert not [
        path for path in smoke_run.path.rglob("*") if "trainer" in path.name or path.name.startswith("checkpoint-")
    ]


def test_config_yaml_is_the_configuration_of_the_results(smoke_run: SmokeRun) -> None:
    assert yaml.safe_load((smoke_run.path / "config.yaml").read_text()) == smoke_run.results["config"]


def test_the_answer_and_every_figure_are_in_results_md(smoke_run: SmokeRun) -> None:
    text = (smoke_run.path / "results.md").read_text()
    assert text.startswith(f"# {smoke_run.results['answer']}\n")
    for name in smoke_run.results["figures"]:
        assert f"]({name})" in text


# --- results.json -----------------------------------------------------------------------------------------------------------


def test_results_json_is_what_its_schema_says(smoke_run: SmokeRun) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert mistakes(smoke_run.results) == []
    assert smoke_run.results["schema_version"] == SCHEMA_VERSION == schema()["properties"]["schema_version"]["const"]


def test_the_schema_is_strict(smoke_run: SmokeRun) -> None:
    small = {**smoke_run.results, "landscapes": {}, "paths": [], "checkpoint_plane": None}
    assert not mistakes(small)
    assert mistakes({**small, "extra": 1})
    assert mistakes({key: value for key, value in small.items() if key != "answer"})
    landscape = smoke_run.results["landscapes"]["after_task1"]
    assert not mistakes_in("landscapes", {"after_task1": {**landscape, "surfaces": {}}})
    assert mistakes_in("landscapes", {"after_task1": {**landscape, "surfaces": {}, "distance": "far"}})
    (path,), plane = smoke_run.results["paths"], {**smoke_run.results["checkpoint_plane"], "surfaces": {}}
    assert not mistakes_in("paths", [path])
    for changes in ({"extra": 1}, {"nodes": 1}, {"from": None}, {"steps": None}):
        assert mistakes_in("paths", [{**path, **changes}])
    assert not mistakes_in("checkpoint_plane", plane)
    assert not mistakes_in("checkpoint_plane", None)
    for changes in ({"extra": 1}, {"checkpoints": []}, {"fit": None}, {"alphas": [None]}, {"trajectory": [{}]}):
        assert mistakes_in("checkpoint_plane", {**plane, **changes})


def test_the_schema_describes_every_record_and_every_part_of_the_results() -> None:
    records = {name: part for name, part in schema()["$defs"].items() if part.get("type") == "object"}
    assert len(records) > 50
    described = {**records, **schema()["properties"]}
    assert [name for name, part in described.items() if len(target(part).get("description", "")) < 5] == []


def target(part: dict[str, Any]) -> dict[str, Any]:
    """What a part of the schema refers to, under its own keys; where it may be null, what else it may be."""
    part = next((other for other in part.get("anyOf", []) if "$ref" in other), part)
    return {**schema()["$defs"][part["$ref"].rsplit("/", 1)[1]], **part} if "$ref" in part else part


def test_the_schema_has_every_field_of_the_configuration() -> None:
    sections = {name: target(part) for name, part in target(schema()["properties"]["config"])["properties"].items()}
    assert {f"{name}.{field}" for name, part in sections.items() for field in part["properties"]} == set(dotted_paths())
    assert not mistakes_in("config", to_dict(ExperimentConfig()))


def test_a_base_model_that_does_not_answer_with_letters_is_warned_of(smoke_run: SmokeRun) -> None:
    mass = smoke_run.results["guards"]["letter_mass"]
    assert mass < 0.5
    said = f"before training only {100 * mass:.0f}% of the probability is on the option letters"
    assert any(said in warning for warning in smoke_run.results["warnings"])
    assert said in smoke_run.stdout


def test_splits_are_disjoint_and_everything_scored_is_in_them(smoke_run: SmokeRun) -> None:
    splits = {
        (task["name"], s): [item["id"] for item in task["splits"][s]]
        for task in smoke_run.results["tasks"]
        for s in SPLITS
    }
    ids = [identity for found in splits.values() for identity in found]
    assert len(ids) == len(set(ids)) == 4 * 48
    scored: dict[tuple[str, str, str], list[str]] = {}
    for record in records(smoke_run.path):
        scored.setdefault((record["checkpoint"], record["task"], record["split"]), []).append(record["id"])
    assert scored == {(c, *cell): found for c in CHECKPOINTS for cell, found in splits.items()}
    for task in smoke_run.results["tasks"]:
        assert set(task["landscape_items"]) <= set(splits[task["name"], "train"])


def test_all_that_is_said_of_forgetting_comes_from_items_jsonl_alone(smoke_run: SmokeRun) -> None:
    results, text = smoke_run.results, (smoke_run.path / "items.jsonl").read_text(encoding="utf-8")
    summary = summarise(decode_lines(list[Line], text), results["task_names"], seed=0)
    assert json.loads(encode(summary)) == {key: results[key] for key in ("answer", "forgetting", "spurious", "text")}


def test_items_jsonl_recomputes_every_cell_and_every_forgetting(smoke_run: SmokeRun) -> None:
    """From the letter logits alone, by formulae written down a second time."""
    cells: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for record in records(smoke_run.path):
        z, y = np.array(record["letter_logits"]), "ABCD".index(record["answer"])
        total = np.exp(z).sum() + np.exp(record["rest"])
        loss, right = float(np.log(total) - z[y]), float(z[y] == z.max())
        assert record["loss"] == pytest.approx(loss, abs=1e-9)
        assert (record["correct"], record["predicted"]) == (bool(right), "ABCD"[int(z.argmax())])
        where = (record["split"], record["checkpoint"], record["task"])
        cells.setdefault(where, []).append((right, loss, float(np.exp(z).sum() / total)))
    names = smoke_run.results["task_names"]
    for split in SPLITS:
        means = np.array([[np.mean(cells[split, c, t], axis=0) for t in names] for c in CHECKPOINTS])
        found = smoke_run.results["forgetting"][split]
        for index, measure in enumerate(("accuracy", "loss")):
            R = means[..., index]
            recorded = [[cell["value"] for cell in row] for row in found[measure]["cells"]]
            np.testing.assert_allclose(recorded, R, atol=1e-9)
            sign = 1 if measure == "accuracy" else -1
            lost, learnt = sign * (R[1, 0] - R[2, 0]), sign * (np.diag(R[1:]) - R[0])
            (task,) = found[measure]["tasks"]
            assert task["absolute"]["value"] == pytest.approx(lost)
            assert task["change"]["value"] == pytest.approx(R[2, 0] - R[1, 0])
            assert task["normalised"]["value"] == pytest.approx(lost / learnt[0])
            assert [entry["learning"]["value"] for entry in found[measure]["learning"]] == pytest.approx(learnt)
            assert found[measure]["backward_transfer"]["value"] == pytest.approx(-lost)
            assert found[measure]["forward_transfer"]["value"] == pytest.approx(sign * (R[1, 1] - R[0, 1]))
            assert found[measure]["average"]["value"] == pytest.approx(R[2].mean())
        np.testing.assert_allclose(found["letter_mass"], means[..., 2], atol=1e-9)


def test_the_smoke_run_learns_and_forgets(smoke_run: SmokeRun) -> None:
    """The toy tasks contradict each other: what is learnt of the first must go."""
    found = smoke_run.results["forgetting"]["train"]["accuracy"]
    assert [entry["shown"] for entry in found["learning"]] == [True, True]
    assert found["tasks"][0]["absolute"]["interval"]["low"] > 0.5
    assert "fell from" in smoke_run.results["answer"]


def mean_losses(run: SmokeRun) -> Callable[[str, Sequence[str]], float]:
    """The mean loss of some items at a checkpoint, from items.jsonl."""
    losses = {(r["checkpoint"], r["id"]): r["loss"] for r in records(run.path)}
    return lambda checkpoint, items: float(np.mean([losses[checkpoint, identity] for identity in items]))


def test_the_centre_of_a_surface_is_the_loss_of_its_items(smoke_run: SmokeRun) -> None:
    """As measured; the fitted surface passes it within its own error."""
    mean_loss = mean_losses(smoke_run)
    for checkpoint, landscape in smoke_run.results["landscapes"].items():
        middle = len(landscape["alphas"]) // 2
        assert landscape["alphas"][middle] == landscape["betas"][middle] == 0
        centre = landscape["points"].index([0, 0])
        for surface in landscape["surfaces"].values():
            expected = mean_loss(checkpoint, surface["items"])
            assert surface["measured_loss"][centre] == pytest.approx(expected, abs=1e-4)
            assert surface["loss"][middle][middle] == pytest.approx(expected, abs=surface["error"]["largest"])
            assert surface["metrics"]["centre"] == surface["loss"][middle][middle]
            assert surface["metrics"]["range"] == pytest.approx(np.ptp(surface["loss"]))
    first, second = smoke_run.results["landscapes"].values()
    assert first["reference_norm"] == second["reference_norm"] == first["adapter_norm"]
    assert first["relative_scale"] == 1


def test_a_fit_counts_what_it_cost_and_says_whether_it_is_good_enough(smoke_run: SmokeRun) -> None:
    settings = smoke_run.results["config"]["landscape"]
    for name, landscape in smoke_run.results["landscapes"].items():
        fit, surfaces = landscape["fit"], landscape["surfaces"].values()
        assert landscape["method"] == "spectral"
        assert fit["evaluations"] == len(landscape["points"]) <= settings["max_evaluations"]
        assert landscape["evaluations"] == fit["evaluations"] + 4 * (settings["directions"] - 2)
        assert fit["converged"] == all(s["error"]["relative"] <= settings["tolerance"] for s in surfaces)
        artifact = json.loads((smoke_run.path / "phases" / f"landscape_{name}.json").read_text())["result"]
        for task, surface in landscape["surfaces"].items():
            raw = artifact["surfaces"][task]
            z, rest, y = (np.array(raw[key]) for key in ("letter_logits", "rest", "answers"))
            lse = np.log(np.exp(z).sum(axis=-1) + np.exp(rest))
            losses = (lse - z[:, np.arange(len(y)), y]).mean(axis=1)
            np.testing.assert_allclose(surface["measured_loss"], losses, atol=1e-9)
            assert surface["lines"]["losses"][0][len(surface["lines"]["steps"]) // 2] == pytest.approx(
                surface["metrics"]["centre"], abs=1e-9
            )


def test_the_forecast_is_of_what_was_measured(smoke_run: SmokeRun) -> None:
    """Its starting loss and observed change are those of items.jsonl, its curvature the path's own, its length the path's."""
    mean_loss = mean_losses(smoke_run)
    (found,), (path,) = smoke_run.results["forecasts"], smoke_run.results["paths"]
    assert (found["from"], found["to"]) == (path["from"], path["to"]) == CHECKPOINTS[1:]
    assert found["update_norm"] == pytest.approx(path["update_norm"], rel=1e-6)
    assert found["rivals"] is None
    assert found["divergence"]["value"] > 1 > found["divergence"]["stderr"] > 0
    assert list(found["tasks"]) == ["synthetic_1"]
    for split, forecast in found["tasks"]["synthetic_1"].items():
        before, after = (mean_loss(checkpoint, forecast["items"]) for checkpoint in CHECKPOINTS[1:])
        assert forecast["loss"] == pytest.approx(before, abs=1e-4)
        assert forecast["observed"] == pytest.approx(after - before, abs=1e-4)
        assert forecast["second_order"] == pytest.approx(forecast["first_order"] + forecast["curvature"] / 2)
        assert (forecast["path"] is None) == (split == "test")
    along = found["tasks"]["synthetic_1"]["train"]["path"]
    start = path["tasks"]["synthetic_1"]["at_start"]
    assert (along["slope"], along["curvature"]) == (start["slope"], start["curvature"])
    assert along["disagreement"] < 0.05
    assert 0 < along["validity"]["fraction"] < 1
    assert f"t = {along['validity']['fraction']:.2f}" in smoke_run.stdout


def test_paths_and_plane_meet_the_checkpoints(smoke_run: SmokeRun) -> None:
    """Their losses there are those of items.jsonl, their lengths those of the updates."""
    mean_loss = mean_losses(smoke_run)
    (path,), plane = smoke_run.results["paths"], smoke_run.results["checkpoint_plane"]
    first, second = (landscape["update_norm"] for landscape in smoke_run.results["landscapes"].values())
    assert (path["from"], path["to"]) == CHECKPOINTS[1:]
    assert (path["steps"][0], path["steps"][-1]) == (0, 1)
    assert (path["nodes"][0], path["nodes"][-1]) == pytest.approx((-0.1, 1))
    assert path["nodes"] == sorted(path["nodes"])
    assert path["evaluations"] == len(path["nodes"])
    for found in path["tasks"].values():
        for end, checkpoint in ((0, path["from"]), (-1, path["to"])):
            expected = mean_loss(checkpoint, found["items"])
            assert found["loss"][end] == pytest.approx(expected, abs=2 * found["error"]["largest"] + 1e-3)
        assert found["at_nodes"]["loss"][-1] == pytest.approx(mean_loss(path["to"], found["items"]), abs=1e-4)
    corners = plane["checkpoints"]
    assert tuple(corners) == CHECKPOINTS
    assert corners["initial"] == [0, 0]
    assert corners["after_task1"] == pytest.approx([first, 0], rel=1e-6)
    assert np.hypot(*corners["after_task2"]) == pytest.approx(second, rel=1e-6)
    assert np.hypot(*np.subtract(corners["after_task2"], corners["after_task1"])) == pytest.approx(
        path["update_norm"], rel=1e-6
    )
    for surface in plane["surfaces"].values():
        for checkpoint, loss in surface["at_checkpoints"].items():
            assert loss == pytest.approx(mean_loss(checkpoint, surface["items"]), abs=1e-4)
        shown = [[value is not None for value in row] for row in surface["loss"]]
        assert shown == plane["inside"]


def test_landscapes_do_not_depend_on_the_gauge(smoke_run: SmokeRun) -> None:
    for landscape in smoke_run.results["landscapes"].values():
        test = landscape["gauge_self_test"]
        assert test["passed"] is True
        assert 0 < test["value_relative_difference"] < 1e-4
        assert test["second_difference_relative_difference"] < 1e-4
        a, b = test["value"]
        assert test["value_relative_difference"] == pytest.approx(abs(a - b) / max(abs(a), abs(b)))


def test_seconds_and_bytes_of_every_phase_are_plausible(smoke_run: SmokeRun) -> None:
    timings = smoke_run.results["timings"]
    assert set(timings) == {path.stem for path in (smoke_run.path / "phases").iterdir()}
    assert 0.01 < timings["train_task1"]["wall_seconds"] < 300
    for phase in timings.values():
        assert 50e6 < phase["peak_memory_bytes"] < 20e9


# --- checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2])
def test_a_checkpoint_loads_in_plain_peft_and_gives_the_recorded_logits(smoke_run: SmokeRun, k: int) -> None:
    from peft import PeftModel

    from llm_forgetting.tasks.prompts import render
    from llm_forgetting.tasks.synthetic import SUBJECTS, SyntheticSource

    folder = smoke_run.path / f"checkpoint_after_task{k}"
    backbone = AutoModelForCausalLM.from_pretrained(smoke_run.cache / "synthetic-llama-v1", dtype=torch.float32)
    model = PeftModel.from_pretrained(backbone, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = SyntheticSource()
    items = {item.id: item for name in SUBJECTS for item in source.pool(name, (name,)).rows}
    chosen = [r for r in records(smoke_run.path) if r["checkpoint"] == f"after_task{k}"][::37]
    assert len(chosen) >= 5
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in "ABCD"]
    for record in chosen:
        with torch.no_grad():
            logits = model(**tokenizer(render(items[record["id"]], ()), return_tensors="pt")).logits[0, -1]
        np.testing.assert_allclose(logits[letters], record["letter_logits"], atol=1e-4)
        others = torch.ones_like(logits, dtype=torch.bool)
        others[letters] = False
        assert float(logits[others].logsumexp(0)) == pytest.approx(record["rest"], abs=1e-4)


def test_a_checkpoint_is_whole(smoke_run: SmokeRun) -> None:
    for k in (1, 2):
        folder = smoke_run.path / f"checkpoint_after_task{k}"
        names = {path.name for path in folder.iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
        written = yaml.safe_load((folder / "experiment_config.yaml").read_text())
        assert written == smoke_run.results["config"]


# --- repeating, killing, resuming ---------------------------------------------------------------------------------------------


def test_another_seed_gives_another_adapter_and_other_splits(shell: Shell, tiny_run: Path) -> None:
    other = shell.run_tiny("--seed", "1", moment=Moment("after_replace", "phases/setup.json")).folder
    one, two = (json.loads((folder / "phases" / "setup.json").read_text())["result"] for folder in (tiny_run, other))
    for field in ("initial_adapter_sha256", "tasks"):
        assert one[field] != two[field]


KILLS = [
    (Moment("before_replace", "phases/setup.json"), "phases/setup.json"),
    (Moment("trainer_state", count=1), "checkpoint-2"),
    # In this process two steps are one epoch: the third belongs to the second epoch.
    (Moment("training_step", count=3), "training step 3"),
    # Resumed from the end of epoch 1 (step 2), so that the process's fourth step is step 6; from scratch it were step 4.
    (Moment("training_step", count=4), "training step 6"),
    (Moment("after_replace", "checkpoint_after_task1"), "checkpoint_after_task1"),
    (Moment("before_replace", "phases/train_task1.json"), "phases/train_task1.json"),
    (Moment("after_replace", "phases/train_task1.json"), "phases/train_task1.json"),
    (Moment("before_replace", "phases/evaluate_after_task1.json"), "phases/evaluate_after_task1.json"),
    (Moment("landscape_point", count=5), "a landscape point"),
    # Ten points further, at a check point.
    (Moment("landscape_point", count=15), "a landscape point"),
    (Moment("before_replace", "phases/landscape_after_task1.json"), "phases/landscape_after_task1.json"),
    (Moment("before_replace", "checkpoint_after_task2"), "checkpoint_after_task2"),
    (Moment("after_replace", "phases/landscape_after_task2.json"), "phases/landscape_after_task2.json"),
    # On the path between the checkpoints, which takes 13 to 23, and on the plane, which takes 26.
    (Moment("landscape_point", count=4), "a landscape point"),
    (Moment("landscape_point", count=25), "a landscape point"),
    (Moment("before_replace", "phases/between_checkpoints.json"), "phases/between_checkpoints.json"),
    (Moment("before_replace", "results.json"), "results.json"),
]  # fmt: skip
# In training, after and before an artifact, and in a scan.
FEW_KILLS = [KILLS[k] for k in (2, 4, 7, 8)]


def test_a_run_killed_again_and_again_ends_with_the_results_of_one_that_was_not(shell: Shell, tiny_run: Path) -> None:
    folder: Path | None = None
    for moment, where in KILLS if THOROUGH else FEW_KILLS:
        done = shell.run_tiny(moment=moment) if folder is None else shell.run("--resume", folder, moment=moment)
        assert done.status == -9, (moment, done.stdout + done.stderr)
        assert where in done.stderr
        if folder is None:  # what killed processes may leave must not be taken for artifacts
            (done.folder / "phases" / ".train_task1.json.abc").write_text('{"phase": "train_ta')
            (done.folder / ".checkpoint_after_task1.abc").mkdir()
        folder = done.folder
        assert not (folder / "results.json").exists()
    assert folder is not None
    assert shell.run("--resume", folder).status == 0
    assert same_results(read_results(folder), read_results(tiny_run))
    for name in ("items.jsonl", "results.md", "phases/landscape_after_task1.json"):
        if name.startswith("phases"):
            one, other = (json.loads((run / name).read_text())["result"] for run in (folder, tiny_run))
            assert one == other
        else:
            assert (folder / name).read_bytes() == (tiny_run / name).read_bytes()
    assert {p.name for p in (folder / "phases").glob("*.json")} == {
        p.name for p in (tiny_run / "phases").glob("*.json")
    }
    assert not list(folder.glob("phases/trainer*"))


def test_a_scan_that_is_killed_goes_on_at_its_next_point(shell: Shell, tiny_run: Path) -> None:
    """Not one point is evaluated twice, but the one whose line in the journal was cut short."""
    expected = read_results(tiny_run)
    points = sum(landscape["evaluations"] for landscape in expected["landscapes"].values())
    points += sum(path["evaluations"] for path in expected["paths"])
    points += expected["checkpoint_plane"]["fit"]["evaluations"] + 3
    moments = {  # process by process: where it is killed, and which journal it leaves with how many lines
        5: ("landscape_after_task1", 4),
        # 20 points of the plane are left, the first off it follows.
        22: ("landscape_after_task1", 24),
        # Three points, six of the self-test, the second checkpoint's 27 and 6, the fourth of the path.
        3 + 6 + 27 + 6 + 4: ("path_to_after_task2", 3),
    }
    finished: list[Finished] = []
    folder: Path | None = None
    for count, (journal, lines) in moments.items():
        moment = Moment("landscape_point", count=count)
        done = shell.run_tiny(moment=moment) if folder is None else shell.run("--resume", folder, moment=moment)
        assert done.status == -9, done.stdout + done.stderr
        finished.append(done)
        folder = done.folder
        (left,) = (folder / "phases").glob("*.journal")
        text = left.read_text()
        assert (left.stem, text.count("\n")) == (journal, lines)
        if count == 5:
            left.write_text(text[:-10])
    finished.append(shell.run("--resume", folder, moment=Moment("landscape_point", count=0)))
    assert finished[-1].status == 0, finished[-1].stderr
    assert folder is not None
    assert same_results(read_results(folder), expected)
    assert not list((folder / "phases").glob("*.journal"))
    items = 2 * expected["config"]["landscape"]["num_items"]
    assert sum(done.stderr.count(f"evaluated {items} items\n") for done in finished) == points + 1


@pytest.mark.parametrize(
    ("moment", "journals"),
    [
        # On the plane: the path is finished, and stays so.
        (Moment("landscape_point", count=27 + 6 + 27 + 6 + 30), {"path_to_after_task2", "checkpoint_plane"}),
        (Moment("before_replace", "phases/between_checkpoints.json"), {"path_to_after_task2", "checkpoint_plane"}),
        (Moment("before_replace", "phases/landscape_after_task1.json"), {"landscape_after_task1"}),
    ],
)
def test_what_was_evaluated_is_kept_until_its_phase_is(
    shell: Shell, trajectory_run: Path, moment: Moment, journals: set[str]
) -> None:
    stopped = shell.run_tiny("--landscape.trajectory", "true", moment=moment)
    assert stopped.status == -9
    assert {path.stem for path in (stopped.folder / "phases").glob("*.journal")} == journals
    lines = sum(path.read_text().count("\n") for path in (stopped.folder / "phases").glob("*.journal"))
    again = shell.run("--resume", stopped.folder, moment=Moment("landscape_point", count=0))
    expected = read_results(trajectory_run)
    assert same_results(read_results(stopped.folder), expected)
    points = sum(path["evaluations"] for path in expected["paths"]) + 26 + 6
    points += 27 * (2 if "landscape_after_task1" in journals else 0)
    assert again.stderr.count("evaluated 16 items\n") == points - lines
    for left in ("*.journal", "trajectory*"):
        assert not list((stopped.folder / "phases").glob(left))


@pytest.fixture(scope="module")
def trajectory_run(shell: Shell) -> Path:
    done = shell.run_tiny("--landscape.trajectory", "true")
    assert done.status == 0, done.stderr
    return done.folder


def test_resuming_a_finished_run_computes_and_loads_nothing_and_leaves_the_results_equal(
    shell: Shell, tiny_run: Path, tmp_path: Path
) -> None:
    finished = shutil.copytree(tiny_run, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (finished / "phases").iterdir()}
    again = shell.run("--resume", finished, moment=Moment("loading"))
    assert again.status == 0, again.stderr
    assert again.stdout.count("kept from before") == 9
    assert {path: path.stat().st_mtime_ns for path in (finished / "phases").iterdir()} == before
    assert (finished / "results.json").read_bytes() == (tiny_run / "results.json").read_bytes()
    # The trap works: a run that has something to compute falls into it.
    (finished / "phases" / "landscape_after_task2.json").unlink()
    assert shell.run("--resume", finished, moment=Moment("loading")).status == -9


def test_a_checkpoint_that_has_gone_is_named(shell: Shell) -> None:
    stopped = shell.run_tiny(moment=Moment("after_replace", "phases/train_task1.json"))
    (stopped.folder / "checkpoint_after_task1" / "adapter_model.safetensors").unlink()
    said = shell.run("--resume", stopped.folder).complaint
    assert "checkpoint_after_task1/adapter_model.safetensors must be what was written" in said
    assert "it is gone; put it back, or remove " in said
    assert "phases/train_task1.json: then --resume trains it again" in said


# --- more than two tasks ----------------------------------------------------------------------------------------------------


def test_three_tasks_need_nothing_new(shell: Shell) -> None:
    tasks = ("synthetic_1", "synthetic_2", "synthetic_3")
    done = shell.run_tiny("--tasks", ",".join(tasks), "--training.num_epochs", "1")
    assert done.status == 0, done.stderr
    results = read_results(done.folder)
    assert mistakes(results) == []
    assert np.shape(results["forgetting"]["train"]["letter_mass"]) == (4, 3)
    cells = results["forgetting"]["test"]["loss"]["cells"]
    assert (len(cells), {len(row) for row in cells}) == (4, {3})
    assert [task["task"] for task in results["forgetting"]["train"]["accuracy"]["tasks"]] == [1, 2]
    assert list(results["landscapes"]) == ["after_task1", "after_task2", "after_task3"]
    assert [len(landscape["surfaces"]) for landscape in results["landscapes"].values()] == [2, 3, 2]
    assert len(results["landscape_comparison"]) == 2 * 2
    assert [(path["from"], path["to"]) for path in results["paths"]] == [
        ("after_task1", "after_task2"),
        ("after_task2", "after_task3"),
    ]
    assert {tuple(path["tasks"]) for path in results["paths"]} == {tasks}
    assert tuple(results["checkpoint_plane"]["checkpoints"]) == ("initial", "after_task1", "after_task3")
    assert tuple(results["checkpoint_plane"]["surfaces"]) == (tasks[0], tasks[2])
    missing = {f"landscape_after_task{k}_synthetic_2_{kind}" for k in (1, 3) for kind in ("contour", "3d")}
    drawn = figure_names(tuple(results["landscapes"]), tasks) - missing
    assert set(results["figures"]) == {f"{stem}.png" for stem in drawn}
    assert all((done.folder / f"checkpoint_after_task{k}" / "adapter_model.safetensors").is_file() for k in (1, 2, 3))
    hashes = [results["initial_adapter_sha256"], *(entry["adapter_sha256"] for entry in results["training"])]
    assert len(set(hashes)) == 4
    for phase in results["training"]:
        assert phase["interventions"] == {"sam": None, "replayed": {}, "anchor": None, "rescale": 1}
    assert "- Training on" not in (done.folder / "results.md").read_text()
    assert "After fine-tuning on synthetic_2, then synthetic_3" in results["answer"]


def test_a_run_says_what_intervened_in_its_training(shell: Shell) -> None:
    done = shell.run_tiny(
        "--interventions.sam_rho", "0.02", "--interventions.sam_on", "first", "--interventions.replay_items", "6",
        "--interventions.anchor", "0.01", "--interventions.rescale", "3",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    results = read_results(done.folder)
    assert mistakes(results) == []
    first, second = (phase["interventions"] for phase in results["training"])
    assert first == {"sam": {"rho": 0.02, "adaptive": False}, "replayed": {}, "anchor": None, "rescale": 1}
    assert (second["sam"], second["rescale"], list(second["replayed"])) == (None, 3, ["synthetic_1"])
    ids = second["replayed"]["synthetic_1"]
    assert len(ids) == 6
    assert set(ids) < {item["id"] for item in results["tasks"][0]["splits"]["train"]}
    distance = results["paths"][0]["update_norm"]  # that of the saved checkpoints
    assert second["anchor"]["distance"] == pytest.approx(distance, rel=1e-4)
    assert second["anchor"]["penalty"] == pytest.approx(0.005 * distance**2, rel=1e-3)
    assert [phase["optimizer_steps"] for phase in results["training"]] == [3 * 2, 3 * 3]
    text = (done.folder / "results.md").read_text()
    assert "- Training on synthetic 1: SAM with radius 0.02\n" in text
    assert (
        "- Training on synthetic 2: B multiplied and A divided by 3 before it; 6 items of synthetic 1 replayed; L2"
        in text
    )


@pytest.mark.parametrize("broken", ["draw_landscapes", "results_markdown", "write_cards", "write_run_report"])
def test_what_cannot_be_drawn_is_a_warning_and_loses_no_results(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("File name too long")

    warned: list[str] = []
    watcher = Silent()
    monkeypatch.setattr(watcher, "warn", warned.append)
    monkeypatch.setattr("llm_forgetting.report.figures.run.save", lambda figure, stem, dpi: None)
    monkeypatch.setattr(publication, broken, fail)
    results, lines = read_run(tiny_run), read_items(tiny_run)
    publication.publish(results, lines, RunFolder(tmp_path), watcher)
    (warning,) = (said for said in warned if "File name too long" in said)
    assert "all numbers are in results.json" in warning
    found = read_results(tmp_path)
    figures = [] if broken == "draw_landscapes" else read_results(tiny_run)["figures"]
    assert found == {**read_results(tiny_run), "figures": figures}
    assert (tmp_path / "items.jsonl").is_file()


def test_weight_space_in_low_arithmetic_is_refused_before_anything_is_trained(shell: Shell, tmp_path: Path) -> None:
    low = ("--landscape.space", "weight", "--model.dtype", "bfloat16", "--landscape.arithmetic", "native")
    complaint = shell.run("--config", shell.tiny, "--output_dir", tmp_path, *low).complaint
    assert "landscape.space=weight needs float32 arithmetic (in bfloat16 a small step is rounded away)" in complaint
    assert "set it to float32, or use landscape.space=adapter" in complaint
    assert not list(tmp_path.iterdir())


def test_low_arithmetic_that_only_the_model_shows_is_refused_in_the_first_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where model.dtype is auto, on a GPU."""
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(AdaptedModel, "precision", torch.bfloat16)
    monkeypatch.setattr(LanguageModel, "probe_packing", lambda model: setattr(model, "supports_packing", False))
    config = from_plain(ExperimentConfig, {**TINY, "landscape": {**TINY["landscape"], "space": "weight"}})
    folder = RunFolder.create(tmp_path)
    with pytest.raises(UserError, match=r"needs float32 arithmetic .* set it to float32, or use"):
        run_experiment(config, folder)
    assert not list(folder.phases.iterdir())


def test_one_of_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under torchrun: each would train on a part of the items, and none would say so."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"a run must be one process, WORLD_SIZE is 2; start it without torchrun"):
        run_experiment(from_plain(ExperimentConfig, TINY), RunFolder.create(tmp_path))
