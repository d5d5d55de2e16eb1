"""From a study's YAML file to its cells; who may begin, who shares, what is begun again. No model."""

import dataclasses
import gzip
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import ROOT

from llm_forgetting.config import SEEDS, ExperimentConfig, InterventionsConfig, files
from llm_forgetting.curvature.records import Divergence, ForecastRecord, RivalPredictors, TaskForecast
from llm_forgetting.curvature.results import Trace
from llm_forgetting.engines.engine import Job, JobResult
from llm_forgetting.errors import UserError
from llm_forgetting.files import decode, encode, encode_json, manifest, write_text
from llm_forgetting.forgetting.records import ItemRecord, Line
from llm_forgetting.forgetting.summary import summarise
from llm_forgetting.results import Environment, GuardReport, ModelDescription, Protocol, Results
from llm_forgetting.study.analysis import analyse, runs_of
from llm_forgetting.study.cell import CellJob
from llm_forgetting.study.measures import MEASURES, OUTCOMES, numbers_of
from llm_forgetting.study.plan import Analysis, CellPlace, Plan, read_plan
from llm_forgetting.study.records import (
    FAILURE,
    RECORD,
    CellFailure,
    CellRecord,
    StudyRecords,
    read_records,
    write_records,
)
from llm_forgetting.study.report import write_report
from llm_forgetting.study.scheduler import ATTEMPTS, StudyFolder, run_study
from llm_forgetting.study.shared_first_task import (
    CHECKPOINT,
    ON_LATER_TASKS,
    SAM,
    Tasks,
    first_task_key,
    first_task_phases,
    has_first_task,
)

SMALL: dict[str, Any] = {
    "name": "small",
    "base": "smoke",
    "set": {"data": {"train_items": 8, "test_items": 4}, "landscape": {"tasks": "learnt", "num_items": 8}},
    "vary": {
        "data.tasks": [["synthetic_1", "synthetic_2"], ["synthetic_1", "synthetic_3"], ["synthetic_2", "synthetic_3"]],
        "seed": [0, 1],
    },
    "arms": {"adamw": {}, "sam": {"interventions.sam_rho": 0.1}, "rescaled": {"interventions.rescale": 2.0}},
}


PLANS: dict[str, Plan] = {}


def plan_of(tmp_path: Path, **changes: Any) -> Plan:
    """The plan of SMALL with `changes`; the same one for the same content, as it takes a while to read."""
    file, text = tmp_path / "study.yaml", yaml.safe_dump({**SMALL, **changes}, sort_keys=False)
    file.write_text(text)
    if text not in PLANS:
        PLANS[text] = read_plan(file)
    return PLANS[text]


# Cells


def test_every_combination_is_a_cell_in_the_order_of_the_file(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert len(plan.cells) == 3 * 2 * 3
    assert [(c.pair, c.factors["seed"], c.arm) for c in plan.cells[:4]] == [
        ("synthetic_1 > synthetic_2", 0, "adamw"),
        ("synthetic_1 > synthetic_2", 0, "sam"),
        ("synthetic_1 > synthetic_2", 0, "rescaled"),
        ("synthetic_1 > synthetic_2", 1, "adamw"),
    ]
    config = plan.cells[4].config
    assert (config.training.seed, config.data.seed, config.landscape.seed, config.curvature.seed) == (1, 1, 1, 1)
    assert config.interventions.sam_rho == 0.1
    assert config.data.train_items == 8
    assert config.model.name == "synthetic"


def test_a_plan_is_read_with_as_many_parses_as_there_are_different_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parses = []
    parse = files._parsed
    monkeypatch.setattr(files, "_parsed", lambda cls, arguments: parses.append(arguments) or parse(cls, arguments))
    vary = {"seed": list(range(10)), "training.num_epochs": [1, 2, 3], "lora.rank": [2, 4, 8]}
    assert len(plan_of(tmp_path, vary=vary, arms={"plain": {}, "sam": {"interventions.sam_rho": 0.1}}).cells) == 180
    of_sam, of_set, base = 1, sum(len(section) for section in SMALL["set"].values()), 1
    assert len(parses) <= 10 * len(SEEDS) + 3 + 3 + of_sam + of_set + base


def test_an_arm_may_be_for_some_combinations_only(tmp_path: Path) -> None:
    arms = {"adamw": {}, "rescaled": {"interventions.rescale": 2.0, "where": {"seed": 1}}}
    plan = plan_of(tmp_path, arms=arms)
    assert [cell.factors["seed"] for cell in plan.cells if cell.arm == "rescaled"] == [1, 1, 1]
    assert sum(cell.arm == "adamw" for cell in plan.cells) == 6


def test_cells_that_compute_the_same_are_one(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, arms={"one": {}, "two": {"training.learning_rate": 1e-2}})  # smoke's own
    assert {cell.arm for cell in plan.cells} == {"one"}


def test_single_cells_join_the_combinations(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, cells=[{"data.tasks": ["synthetic_4", "synthetic_1"], "seed": 7}], arms=None)
    assert len(plan.cells) == 7
    assert plan.cells[-1].label == "synthetic_4 > synthetic_1, seed 7"


@pytest.mark.slow
def test_a_cell_is_addressed_by_its_configuration_but_for_its_output(tmp_path: Path) -> None:
    one = plan_of(tmp_path)
    other = plan_of(tmp_path, set={**SMALL["set"], "output": {"figures": False, "folder": "elsewhere"}})
    changed = plan_of(tmp_path, set={**SMALL["set"], "training": {"num_epochs": 2}})
    assert [cell.id for cell in one.cells] == [cell.id for cell in other.cells]
    assert not {cell.id for cell in one.cells} & {cell.id for cell in changed.cells}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"varied": {}}, "varied is none of them"),
        ({"vary": {"training.speed": [1]}}, "training.speed is no field"),
        ({"vary": {"seed": 3}}, "lists of values"),
        ({"vary": {"seed": []}}, "lists of values"),
        ({"arms": {"sam": {"interventions.rho": 1}}}, "interventions.rho is no field"),
        ({"arms": ["sam"]}, "settings by name"),
        ({"arms": {"sam": {"where": {"seed": 5}}}}, "must give values of what is varied"),
        ({"arms": {"sam": {"where": [1]}}}, "must give values of what is varied"),
        ({"set": {"data": {"train_items": -3}}}, "data.train_items must be at least 1"),
        ({"cells": {"seed": 3}}, "must be a list"),
        ({"base": "nowhere.yaml"}, "must be a preset"),
        ({"analysis": {"primary": "flatness"}}, "analysis names flatness"),
        ({"analysis": {"primary": "trace", "measures": ["mean_rise"]}}, "must be one of analysis.measures"),
        ({"analysis": {"outcome": "mean_rise"}}, "analysis names mean_rise"),
        ({"analysis": {"baseline": "sgd"}}, "names the arm sgd"),
        ({"analysis": {"level": 0.05}}, "analysis may hold"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, **changes)
    assert complaint in str(caught.value)
    assert "study.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[", "- a\n- b", "", "name: a\nname: b", "set: {lora: {alpha: 1e309}}", "[" * 10_000])
def test_what_is_no_study_ends_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match="must"):
        read_plan(tmp_path / "study.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "flatness"])
def test_the_studies_that_come_along_can_be_read(name: str) -> None:
    plan = read_plan(ROOT / f"studies/{name}.yaml")
    assert len(plan.cells) >= 48
    assert len({cell.pair for cell in plan.cells}) >= 6
    assert plan.analysis.primary in plan.analysis.measures


# Shared first tasks


def test_cells_that_learn_their_first_task_alike_share_it(tmp_path: Path) -> None:
    tasks, alike_cells = Tasks(), dict[str, set[tuple[str, object, str]]]()
    for cell in plan_of(tmp_path).cells:
        alike_cells.setdefault(first_task_key(cell.config, tasks), set()).add(
            (cell.pair[:11], cell.factors["seed"], cell.arm)
        )
    firsts, seeds = ("synthetic_1", "synthetic_2"), (0, 1)
    # The rescaling acts between the tasks, so its runs share what the baseline's learnt.
    alike = [{(t, s, "adamw"), (t, s, "rescaled")} for t, s in itertools.product(firsts, seeds)]
    assert sorted(map(sorted, alike_cells.values())) == sorted(
        map(sorted, [*alike, *({(t, s, "sam")} for t, s in itertools.product(firsts, seeds))])
    )


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"num_epochs": 3}},
        {"lora": {"rank": 4}},
        {"landscape": {**SMALL["set"]["landscape"], "directions": 3}},
        {"data": {"train_items": 9, "test_items": 4}},
        {"data": {"train_items": 8, "test_items": 5}},
        {"interventions": {"sam_rho": 0.2}},
        {"training": {"methods": {"lora_plus": {"ratio": 4}}}},
        {"curvature": {"lanczos_steps": 5}},
    ],
)
def test_whatever_changes_the_first_task_changes_its_key(tmp_path: Path, change: dict[str, Any]) -> None:
    tasks = Tasks()
    before = first_task_key(plan_of(tmp_path).cells[0].config, tasks)
    assert first_task_key(plan_of(tmp_path, set={**SMALL["set"], **change}).cells[0].config, tasks) != before


@pytest.mark.parametrize(
    "change",
    [
        {"interventions": {"replay_items": 2}},
        {"interventions": {"anchor": 0.5}},
        {"interventions": {"sam_on": "first"}},
        {"training": {"methods": {"ewc": {"strength": 2.0}, "replay": {"items": 1}}}},
        {"evaluation": {"recovery_items": 0}},
        {"output": {"dpi": 60}},
    ],
)
def test_what_comes_later_does_not(tmp_path: Path, change: dict[str, Any]) -> None:
    tasks = Tasks()
    before = first_task_key(plan_of(tmp_path).cells[0].config, tasks)
    assert first_task_key(plan_of(tmp_path, set={**SMALL["set"], **change}).cells[0].config, tasks) == before


def test_arms_and_what_is_varied_name_methods_and_their_options(tmp_path: Path) -> None:
    """An option by its path leaves the others; a method that no one knows is told with the file."""
    arms = {"plain": {}, "ewc": {"training.methods.ewc.fisher": "kronecker"}, "kl": {"training.methods": {"kl": {}}}}
    plan = plan_of(tmp_path, vary={"seed": [0]}, arms=arms)
    assert [cell.config.training.methods for cell in plan.cells] == [{}, {"ewc": {"fisher": "kronecker"}}, {"kl": {}}]
    assert len({cell.id for cell in plan.cells}) == 3
    short = {"plain": {}, "ewc": {"fisher": "kronecker"}, "kl": {}}
    named = plan_of(tmp_path, vary={"seed": [0]}, arms=short)
    assert [cell.id for cell in named.cells] == [cell.id for cell in plan.cells]
    with pytest.raises(UserError, match="the options of ewc are strength, fisher, items"):
        plan_of(tmp_path, arms={"ewc": {"strenght": 3}})
    (cell,) = plan_of(tmp_path, vary={"seed": [0, 1]}, arms={"kl": {"strength": 3, "where": {"seed": 1}}}).cells
    assert cell.config.training.methods == {"kl": {"strength": 3}}
    both = {**arms["ewc"], "training.methods.ewc.strength": 3}
    (cell,) = plan_of(tmp_path, vary={"seed": [0]}, arms={"both": both}).cells
    assert cell.config.training.methods == {"ewc": {"fisher": "kronecker", "strength": 3}}
    with pytest.raises(UserError, match=r"study.yaml: training.methods must name methods among .* did you mean ewc"):
        plan_of(tmp_path, arms={"ewk": {"training.methods.ewk": {}}})


def test_every_intervention_is_said_to_act_on_the_first_task_or_only_later() -> None:
    """A new one changes the key until it is named: no arm takes over a checkpoint that was trained otherwise."""
    assert {field.name for field in dataclasses.fields(InterventionsConfig)} == {*ON_LATER_TASKS, *SAM}


def test_surfaces_of_the_second_task_are_not_shared(tmp_path: Path) -> None:
    shared = plan_of(tmp_path).cells[0].config
    alone = plan_of(tmp_path, set={"data": SMALL["set"]["data"], "landscape": {"num_items": 8}}).cells[0].config
    assert [phase.name for phase in first_task_phases(shared)] == ["train_task1", "landscape_after_task1"]
    assert [phase.name for phase in first_task_phases(alone)] == ["train_task1"]


# Scheduling, with an engine that computes nothing


Behaviour = Callable[[CellJob, int], str]


def record_of(place: CellPlace, **numbers: dict[str, float | None]) -> CellRecord:
    given: dict[str, Any] = {"measures": {}, "outcomes": {}, "stderrs": {}, **numbers}
    return CellRecord(
        **vars(place),
        fingerprint="f",
        **given,
        answer="",
        versions={"python": "3"},
        wall_seconds=1.0,
        shared_half=False,
    )


class Fake:
    """Jobs end in the order they came, one per question. `behaviour` says how: `done`, `failed`, or `died`."""

    def __init__(
        self, slots: int, behaviour: Behaviour = lambda job, attempt: "done", *, first_task_at_once: bool = False
    ) -> None:
        self.slots = slots
        self.behaviour = behaviour
        self.first_task_at_once = first_task_at_once
        self.waiting: list[Job] = []
        self.begun: list[CellJob] = []
        self.most = 0

    def submit(self, submitted: Job) -> None:
        assert len(self.waiting) < self.slots
        job = decode(CellJob, submitted.argument)
        assert submitted.name == job.place.cell
        assert job.source_cell is None or (job.source_cell / CHECKPOINT).is_dir()
        self.waiting.append(submitted)
        self.begun.append(job)
        self.most = max(self.most, len(self.waiting))
        if self.first_task_at_once:
            have_first_task(job.folder)

    def finished(self, seconds: float) -> Sequence[JobResult]:
        if not self.waiting:
            return []
        submitted = self.waiting.pop(0)
        job = decode(CellJob, submitted.argument)
        attempt = sum(other.place.cell == job.place.cell for other in self.begun)
        what = self.behaviour(job, attempt)
        if what == "died":
            return [JobResult(submitted, died=True)]
        if what == "failed":
            write_text(job.folder / FAILURE, encode(CellFailure(cell=job.place.cell, reason="no such luck")))
            return [JobResult(submitted)]
        have_first_task(job.folder)
        manifest.write(job.folder, RECORD, encode(record_of(job.place)).encode())
        return [JobResult(submitted)]

    def close(self) -> None:
        self.waiting = []


def have_first_task(folder: Path) -> None:
    (folder / CHECKPOINT).mkdir(exist_ok=True)
    (folder / "phases").mkdir(exist_ok=True)
    for name in ("train_task1", "landscape_after_task1"):
        (folder / "phases" / f"{name}.json").write_text("{}")


def run(plan: Plan, folder: Path, engine: Fake) -> tuple[StudyFolder, list[str]]:
    said: list[str] = []
    study = StudyFolder(folder)
    run_study(plan, study, engine, threads=1, report=said.append)
    return study, said


def test_every_cell_is_computed_once(tmp_path: Path) -> None:
    plan, engine = plan_of(tmp_path), Fake(3)
    study, said = run(plan, tmp_path / "study", engine)
    assert sorted(job.place.cell for job in engine.begun) == sorted(cell.id for cell in plan.cells)
    assert study.missing(plan) == []
    assert [record.cell for record in study.records(plan)] == [cell.id for cell in plan.cells]
    assert said[-1].startswith(f"[{len(plan.cells)}/{len(plan.cells)}]")


def test_a_first_task_is_learnt_once_and_the_others_copy_it(tmp_path: Path) -> None:
    plan, engine = plan_of(tmp_path), Fake(4)
    run(plan, tmp_path / "study", engine)
    assert sum(job.source_cell is None for job in engine.begun) == 8
    assert len(engine.begun) == 18


def test_cells_with_the_same_first_task_wait_for_it_and_no_longer(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, vary={"data.tasks": [["synthetic_1", "synthetic_2"], ["synthetic_1", "synthetic_3"]]}, arms=None
    )
    waiting, at_once = Fake(2), Fake(2, first_task_at_once=True)
    run(plan, tmp_path / "one", waiting)
    run(plan, tmp_path / "two", at_once)
    assert waiting.most == 1  # the second could not begin before the first was done
    assert at_once.most == 2  # here the first task was there before its cell was


@pytest.mark.slow
def test_a_grown_study_computes_only_what_it_lacks(tmp_path: Path) -> None:
    run(plan_of(tmp_path), tmp_path / "study", Fake(2))
    grown = Fake(2)
    run(plan_of(tmp_path, vary={**SMALL["vary"], "seed": [0, 1, 2]}), tmp_path / "study", grown)
    assert len(grown.begun) == 9


def test_a_failed_cell_leaves_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    bad = plan.cells[3].id
    study, said = run(
        plan, tmp_path / "study", Fake(2, lambda job, attempt: "failed" if job.place.cell == bad else "done")
    )
    assert study.failures(plan) == {plan.cells[3].label: "no such luck"}
    assert len(study.records(plan)) == 17
    assert sum("failed: no such luck" in line for line in said) == 1
    again = Fake(2)
    run(plan, tmp_path / "study", again)
    assert [job.place.cell for job in again.begun] == [bad]


def test_a_cell_whose_worker_dies_is_begun_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    unlucky = plan.cells[5].id
    engine = Fake(2, lambda job, attempt: "died" if job.place.cell == unlucky and attempt < ATTEMPTS else "done")
    study, said = run(plan, tmp_path / "study", engine)
    assert sum(job.place.cell == unlucky for job in engine.begun) == ATTEMPTS
    assert study.missing(plan) == []
    assert sum("begun again" in line for line in said) == ATTEMPTS - 1


def test_a_cell_that_kills_every_worker_fails(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    deadly = plan.cells[0].id
    study, _ = run(
        plan, tmp_path / "study", Fake(2, lambda job, attempt: "died" if job.place.cell == deadly else "done")
    )
    assert list(study.failures(plan)) == [plan.cells[0].label]
    assert f"died {ATTEMPTS} times" in study.failures(plan)[plan.cells[0].label]
    assert len(study.records(plan)) == 17


def test_two_studies_do_not_write_into_one_folder(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    with study.locked(), pytest.raises(UserError, match="another study"), StudyFolder(tmp_path / "study").locked():
        pass


def test_has_first_task_wants_all_of_it(tmp_path: Path) -> None:
    config = plan_of(tmp_path).cells[0].config
    folder = tmp_path / "cell"
    folder.mkdir()
    assert not has_first_task(folder, config)
    have_first_task(folder)
    assert has_first_task(folder, config)
    (folder / "phases/landscape_after_task1.json").unlink()
    assert not has_first_task(folder, config)


# Records and reports


def made_up(plan: Plan, *, slope: float = 1.0) -> list[CellRecord]:
    """Records in which forgetting follows the mean rise within pairs."""
    records = []
    for n, cell in enumerate(plan.cells):
        rise = 0.1 + 0.37 * n % 1
        records.append(
            record_of(
                cell.place,
                measures={"mean_rise": rise, "update_norm": 5 + n % 3, "second_order": slope * rise + 0.1},
                outcomes={
                    "forgetting_loss": slope * rise + len(cell.pair) % 5,
                    "retention_loss": 1 + slope * rise,
                    "observed": slope * rise,
                    "learning_loss": 3 + 0.1 * (n % 4),
                    "mean_rise_after": rise + 0.2,
                },
                stderrs={"mean_rise": 0.01},
            )
        )
    return records


def big(tmp_path: Path) -> Plan:
    firsts = [[f"synthetic_{a}", f"synthetic_{b}"] for a, b in itertools.permutations((1, 2, 3), 2)]
    analysis = {
        "primary": "mean_rise",
        "measures": ["mean_rise", "update_norm", "second_order"],
        "baseline": "adamw",
        "controls": ["rescaled"],
        "given": [["update_norm"], ["learning_loss"]],
    }
    return plan_of(tmp_path, vary={"data.tasks": firsts, "seed": [0, 1, 2, 3]}, analysis=analysis)


@pytest.mark.slow
def test_a_perfect_association_is_found_and_said(tmp_path: Path) -> None:
    plan = big(tmp_path)
    found = analyse(made_up(plan), plan.analysis, plan.arms)
    assert (found["runs"], found["pairs"]) == (72, 6)
    primary = found["associations"]["measures"]["mean_rise"]
    assert primary["spearman_within_pairs"]["value"] > 0.95
    assert primary["n_runs"] == 48  # the control's runs share their checkpoints with the baseline's
    assert "runs with a flatter landscape" in found["answers"]["flatness"]
    assert "48 runs of 6 task pairs" in found["answers"]["flatness"]
    assert found["calibration"]["slope"]["value"] == pytest.approx(1.0, abs=0.05)
    assert found["change"]["value"] == pytest.approx(0.2)
    assert {effect["arm"] for effect in found["effects"]} == {"sam", "rescaled"}


def test_a_small_study_concludes_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, vary={"data.tasks": [["synthetic_1", "synthetic_2"]], "seed": [0, 1]})
    found = analyse(made_up(plan), Analysis(measures=("mean_rise",), baseline="adamw"), plan.arms)
    assert found["answers"]["flatness"].startswith("Nothing is concluded")
    assert "4 runs" in found["answers"]["flatness"] or "6 runs" in found["answers"]["flatness"]


@pytest.mark.slow
def test_without_the_primary_measure_only_arms_are_compared(tmp_path: Path) -> None:
    plan = big(tmp_path)
    found = analyse(made_up(plan), Analysis(primary="trace", measures=("trace",), baseline="adamw"), plan.arms)
    assert found["answers"].pop("flatness") == "No conclusion: none of 72 runs has Hessian trace, the primary measure."
    assert set(found["answers"]) == {"arms"}
    assert {(effect["arm"], effect["outcome"]) for effect in found["effects"]} == {
        (arm, outcome) for arm in ("sam", "rescaled") for outcome in ("forgetting_loss", "learning_loss")
    }


def test_numbers_that_are_not_finite_come_back_as_such(tmp_path: Path) -> None:
    records = stored(tmp_path)
    (record, *others) = records.records
    spoilt = dataclasses.replace(record, measures={**record.measures, "mean_rise": float("nan")})
    write_records(dataclasses.replace(records, records=(spoilt, *others)), tmp_path / "records.json.gz")
    read = read_records(tmp_path / "records.json.gz").records
    assert str(runs_of(read)[0].measures["mean_rise"]) == "nan"


def bare_results() -> Results:
    """Results of a run that measured scores alone: every item of both tasks is answered by a letter per checkpoint."""
    lines: list[Line] = []
    for n, checkpoint in enumerate(("initial", "after_task1", "after_task2")):
        for task, split, item in itertools.product(("a", "b"), ("train", "test"), range(4)):
            z = np.array([1.0, float(item * n), 0.0, 0.0])
            loss = float(np.log(np.exp(z).sum() + 1) - z[0])
            predicted = "AB"[int(z.argmax())]
            lines.append(
                ItemRecord(checkpoint, task, split, f"{item}", "s", "A", predicted, predicted == "A", loss, z, 0.0)
            )
    summary = summarise(lines, ("a", "b"), seed=0)
    config = ExperimentConfig()
    return Results(
        schema_version=1,
        answer=summary.answer,
        config=config,
        versions={},
        environment=Environment("", "", None),
        config_fingerprint=config.fingerprint,
        task_names=("a", "b"),
        source="",
        tasks=(),
        model=ModelDescription("", "", 0, 0, 0, 0, "float32", "cpu", 1),
        initial_adapter_sha256="",
        guards=GuardReport(0, 1, 0.0, 0.0, 0.0, 1.0, ()),
        protocol=Protocol("", "", "", "", 1),
        warnings=(),
        training=(),
        forgetting=summary.forgetting,
        spurious=summary.spurious,
        text=summary.text,
        landscapes={},
        landscape_comparison=(),
        paths=(),
        checkpoint_plane=None,
        between_notes=(),
        curvature={},
        forecasts=(),
        figures=(),
        timings={},
    )


def test_what_a_run_did_not_measure_is_left_out() -> None:
    numbers = numbers_of(bare_results())
    assert numbers.measures == {}
    assert set(numbers.outcomes) == {
        *("forgetting_loss", "forgetting_accuracy", "forgetting_test_loss", "retention_loss", "retention_accuracy"),
        *("first_learning_loss", "learning_loss", "learning_accuracy"),
    }
    assert set(numbers.stderrs) == set(numbers.outcomes)


def test_outcomes_are_those_of_the_first_task_at_the_last_checkpoint_and_learning_those_of_each() -> None:
    results = bare_results()
    numbers, (trained, held_out) = numbers_of(results), results.forgetting.splits
    losses = {split.split: [[cell.value for cell in row] for row in split.loss.cells] for split in (trained, held_out)}
    train = losses["train"]
    assert numbers.outcomes["forgetting_loss"] == pytest.approx(train[2][0] - train[1][0])
    assert numbers.outcomes["forgetting_test_loss"] == pytest.approx(losses["test"][2][0] - losses["test"][1][0])
    assert numbers.outcomes["retention_loss"] == train[2][0]
    assert numbers.outcomes["first_learning_loss"] == pytest.approx(train[0][0] - train[1][0])
    assert numbers.outcomes["learning_loss"] == pytest.approx(train[0][1] - train[2][1])


def forecast(start: str, rivals: RivalPredictors | None) -> ForecastRecord:
    of_task = {"train": TaskForecast((), 1.0, 0.25, 0.5, 0.5, 0.75, None)}
    return ForecastRecord(start, "after_task2", 2.0, None, Divergence(0.1, 0.01, 4), {"a": of_task}, rivals)


def test_forecasts_are_read_at_the_first_checkpoint_and_lack_what_was_not_measured() -> None:
    rivals = RivalPredictors("a", 3.0, Trace(0.5, 0.05), None, None)
    elsewhere = dataclasses.replace(bare_results(), forecasts=(forecast("after_task2", rivals),))
    assert numbers_of(elsewhere).measures == {}
    without = numbers_of(dataclasses.replace(bare_results(), forecasts=(forecast("after_task1", None),)))
    assert without.measures == {
        "update_norm": 2.0, "divergence": 0.1, "first_order": 0.25, "second_order": 0.5, "curvature_along": 0.5,
    }  # fmt: skip
    assert without.outcomes["observed"] == 0.75
    numbers = numbers_of(dataclasses.replace(bare_results(), forecasts=(forecast("after_task1", rivals),)))
    assert set(numbers.measures) - set(without.measures) == {"quadratic_bound", "average_rise", "alignment"}
    assert numbers.measures["alignment"] is None  # measured, and has no number
    assert (numbers.measures["average_rise"], numbers.stderrs["average_rise"]) == (0.5, 0.05)


def test_no_name_is_a_measure_and_an_outcome() -> None:
    assert not set(MEASURES) & set(OUTCOMES)


def stored(tmp_path: Path) -> StudyRecords:
    plan = big(tmp_path)
    return StudyRecords(
        name="big",
        study=dict(plan.content),
        planned=len(plan.cells),
        arms=plan.arms,
        analysis=plan.analysis,
        failures={"one cell": "no such luck"},
        records=tuple(made_up(plan)),
    )


def test_stored_records_are_taken_over_and_only_the_rest_is_computed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    first, again = StudyFolder(tmp_path / "first"), StudyFolder(tmp_path / "again")
    run_study(dataclasses.replace(plan, cells=plan.cells[:5]), first, Fake(1), threads=1)
    again.take_over(plan, [*first.records(plan), dataclasses.replace(first.records(plan)[0], cell="of another study")])
    engine = Fake(1)
    run_study(plan, again, engine, threads=1)
    assert [job.place.cell for job in engine.begun] == [cell.id for cell in plan.cells[5:]]
    assert again.records(plan)[:5] == first.records(plan)


def test_records_are_the_same_bytes_for_the_same_records(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json.gz", tmp_path / "other.json.gz"
    write_records(stored(tmp_path), one)
    write_records(stored(tmp_path), other)
    assert one.read_bytes() == other.read_bytes()
    assert json.loads(gzip.decompress(one.read_bytes()))["planned"] == 72


@pytest.mark.slow
def test_a_report_holds_answers_tables_figures_and_failures(tmp_path: Path) -> None:
    write_records(stored(tmp_path), tmp_path / "records.json.gz")
    content = write_report(read_records(tmp_path / "records.json.gz"), tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert content["figures"] == [f"study_{name}.png" for name in ("measures", "flatness", "forecast", "trade_off")]
    assert all((tmp_path / name).stat().st_size > 5000 for name in content["figures"])
    for part in ("Does a flatter landscape go with less forgetting?", "| mean rise of the loss* |", "no such luck"):
        assert part in text
    assert "72 runs of 6 task pairs" in text


@pytest.mark.slow
def test_figures_that_cannot_be_drawn_lose_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llm_forgetting.study.report.draw_study", broken)
    said: list[str] = []
    write_report(stored(tmp_path), tmp_path, said.append)
    assert json.loads((tmp_path / "study.json").read_text())["figures"] == []
    assert said == [
        "note: figures could not be drawn (OSError(28, 'No space left on device')); everything else is there"
    ]
    assert (tmp_path / "study.md").is_file()
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"{}", mtime=0), gzip.compress(b"[1]", mtime=0)])
def test_what_is_no_record_file_ends_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "records.json.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"records\.json\.gz that a study wrote"):
        read_records(tmp_path / "records.json.gz")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda records: records[1].pop("pair"), "records.1.pair: Field required"),
        (lambda records: records.insert(0, 3), "records.0: "),
        (lambda records: records[2]["measures"].update(mean_rise="high"), "records.2.measures.mean_rise: "),
        (lambda records: records[0].update(outcomes=[1.0]), "records.0.outcomes: "),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path: Path, spoil: Callable[[Any], Any], message: str) -> None:
    content = json.loads(encode(stored(tmp_path)))
    spoil(content["records"])
    (tmp_path / "records.json.gz").write_bytes(gzip.compress(encode_json(content).encode()))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_records(tmp_path / "records.json.gz")
    assert "\n" not in str(caught.value)


def test_a_torn_record_file_ends_in_one_line(tmp_path: Path) -> None:
    write_records(stored(tmp_path), tmp_path / "records.json.gz")
    whole = (tmp_path / "records.json.gz").read_bytes()
    for torn in (whole[:200], whole[:100] + bytes(50) + whole[150:]):
        (tmp_path / "records.json.gz").write_bytes(torn)
        with pytest.raises(UserError, match=r"records\.json\.gz that a study wrote"):
            read_records(tmp_path / "records.json.gz")


@pytest.mark.process
def test_a_report_is_rebuilt_from_records_without_torch(tmp_path: Path) -> None:
    write_records(stored(tmp_path), tmp_path / "records.json.gz")
    code = (
        "import sys; from llm_forgetting.cli.main import main; "
        "status = main(['study', '--records', 'records.json.gz', '--folder', 'again']); "
        "assert status == 0 and 'torch' not in sys.modules and 'transformers' not in sys.modules, sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again/study.md").is_file()
