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

import pytest
import yaml
from runs import ROOT

from llm_forgetting.errors import UserError
from llm_forgetting.files import encode_json, write_text
from llm_forgetting.study.analysis import analyse, runs_of
from llm_forgetting.study.cell import FAILURE, RECORD, Job
from llm_forgetting.study.engines import Ended
from llm_forgetting.study.measures import MEASURES, OUTCOMES, numbers_of
from llm_forgetting.study.plan import Analysis, Plan, read_plan
from llm_forgetting.study.records import read_records, write_records
from llm_forgetting.study.report import write_report
from llm_forgetting.study.scheduler import ATTEMPTS, StudyFolder, run_study
from llm_forgetting.study.shared_first_task import CHECKPOINT, Tasks, half_artifacts, half_key, has_half

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


@pytest.mark.parametrize("text", ["[", "- a\n- b", ""])
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


# Halves


def test_cells_that_learn_their_first_task_alike_share_it(tmp_path: Path) -> None:
    tasks, halves = Tasks(), dict[str, set[tuple[str, object, str]]]()
    for cell in plan_of(tmp_path).cells:
        halves.setdefault(half_key(cell.config, tasks), set()).add((cell.pair[:11], cell.factors["seed"], cell.arm))
    firsts, seeds = ("synthetic_1", "synthetic_2"), (0, 1)
    # The rescaling acts between the tasks, so its runs share what the baseline's learnt.
    alike = [{(t, s, "adamw"), (t, s, "rescaled")} for t, s in itertools.product(firsts, seeds)]
    assert sorted(map(sorted, halves.values())) == sorted(
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
        {"curvature": {"lanczos_steps": 5}},
    ],
)
def test_whatever_changes_the_first_half_changes_its_key(tmp_path: Path, change: dict[str, Any]) -> None:
    tasks = Tasks()
    before = half_key(plan_of(tmp_path).cells[0].config, tasks)
    assert half_key(plan_of(tmp_path, set={**SMALL["set"], **change}).cells[0].config, tasks) != before


@pytest.mark.parametrize(
    "change",
    [
        {"interventions": {"replay_items": 2}},
        {"interventions": {"anchor": 0.5}},
        {"interventions": {"sam_on": "first"}},
        {"evaluation": {"recovery_items": 0}},
        {"output": {"dpi": 60}},
    ],
)
def test_what_comes_later_does_not(tmp_path: Path, change: dict[str, Any]) -> None:
    tasks = Tasks()
    before = half_key(plan_of(tmp_path).cells[0].config, tasks)
    assert half_key(plan_of(tmp_path, set={**SMALL["set"], **change}).cells[0].config, tasks) == before


def test_surfaces_of_the_second_task_are_not_shared(tmp_path: Path) -> None:
    shared = plan_of(tmp_path).cells[0].config
    alone = plan_of(tmp_path, set={"data": SMALL["set"]["data"], "landscape": {"num_items": 8}}).cells[0].config
    assert list(half_artifacts(shared)) == ["train_task1", "landscape_after_task1"]
    assert list(half_artifacts(alone)) == ["train_task1"]


# Scheduling, with an engine that computes nothing


Behaviour = Callable[[Job, int], str]


class Fake:
    """Jobs end in the order they came, one per question. `behaviour` says how: `done`, `failed`, or `died`."""

    def __init__(
        self, slots: int, behaviour: Behaviour = lambda job, attempt: "done", *, halves_first: bool = False
    ) -> None:
        self.slots = slots
        self.behaviour = behaviour
        self.halves_first = halves_first
        self.waiting: list[Job] = []
        self.begun: list[Job] = []
        self.most = 0

    def submit(self, job: Job) -> None:
        assert len(self.waiting) < self.slots
        assert job.donor is None or (job.donor / CHECKPOINT).is_dir()
        self.waiting.append(job)
        self.begun.append(job)
        self.most = max(self.most, len(self.waiting))
        if self.halves_first:
            have_half(job.folder)

    def ended(self, seconds: float) -> Sequence[Ended]:
        if not self.waiting:
            return []
        job = self.waiting.pop(0)
        attempt = sum(other.cell == job.cell for other in self.begun)
        what = self.behaviour(job, attempt)
        if what == "died":
            return [Ended(job, died=True)]
        if what == "failed":
            write_text(job.folder / FAILURE, encode_json({"reason": "no such luck"}))
            return [Ended(job)]
        have_half(job.folder)
        record = {"cell": job.cell, **job.label, "outcomes": {}, "wall_seconds": 1.0}
        write_text(job.folder / RECORD, encode_json(record))
        return [Ended(job)]

    def close(self) -> None:
        self.waiting = []


def have_half(folder: Path) -> None:
    (folder / CHECKPOINT).mkdir(exist_ok=True)
    (folder / "phases").mkdir(exist_ok=True)
    for name in ("train_task1", "landscape_after_task1"):
        (folder / "phases" / f"{name}.json").write_text("{}")


def run(plan: Plan, folder: Path, engine: Fake) -> tuple[StudyFolder, list[str]]:
    said: list[str] = []
    study = StudyFolder(folder)
    run_study(plan, study, engine, threads=1, tell=said.append)
    return study, said


def test_every_cell_is_computed_once(tmp_path: Path) -> None:
    plan, engine = plan_of(tmp_path), Fake(3)
    study, said = run(plan, tmp_path / "study", engine)
    assert sorted(job.cell for job in engine.begun) == sorted(cell.id for cell in plan.cells)
    assert study.missing(plan) == []
    assert [record["cell"] for record in study.records(plan)] == [cell.id for cell in plan.cells]
    assert said[-1].startswith(f"[{len(plan.cells)}/{len(plan.cells)}]")


def test_a_half_is_learnt_once_and_the_others_take_it(tmp_path: Path) -> None:
    plan, engine = plan_of(tmp_path), Fake(4)
    run(plan, tmp_path / "study", engine)
    assert sum(job.donor is None for job in engine.begun) == 8
    assert len(engine.begun) == 18


def test_cells_of_a_half_wait_for_it_and_no_longer(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, vary={"data.tasks": [["synthetic_1", "synthetic_2"], ["synthetic_1", "synthetic_3"]]}, arms=None
    )
    waiting, at_once = Fake(2), Fake(2, halves_first=True)
    run(plan, tmp_path / "one", waiting)
    run(plan, tmp_path / "two", at_once)
    assert waiting.most == 1  # the second could not begin before the first was done
    assert at_once.most == 2  # here the half was there before its cell was


def test_a_grown_study_computes_only_what_it_lacks(tmp_path: Path) -> None:
    run(plan_of(tmp_path), tmp_path / "study", Fake(2))
    grown = Fake(2)
    run(plan_of(tmp_path, vary={**SMALL["vary"], "seed": [0, 1, 2]}), tmp_path / "study", grown)
    assert len(grown.begun) == 9


def test_a_failed_cell_leaves_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    bad = plan.cells[3].id
    study, said = run(plan, tmp_path / "study", Fake(2, lambda job, attempt: "failed" if job.cell == bad else "done"))
    assert study.failures(plan) == {plan.cells[3].label: "no such luck"}
    assert len(study.records(plan)) == 17
    assert sum("failed: no such luck" in line for line in said) == 1
    again = Fake(2)
    run(plan, tmp_path / "study", again)
    assert [job.cell for job in again.begun] == [bad]


def test_a_cell_whose_worker_dies_is_begun_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    unlucky = plan.cells[5].id
    engine = Fake(2, lambda job, attempt: "died" if job.cell == unlucky and attempt < ATTEMPTS else "done")
    study, said = run(plan, tmp_path / "study", engine)
    assert sum(job.cell == unlucky for job in engine.begun) == ATTEMPTS
    assert study.missing(plan) == []
    assert sum("begun again" in line for line in said) == ATTEMPTS - 1


def test_a_cell_that_kills_every_worker_fails(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    deadly = plan.cells[0].id
    study, _ = run(plan, tmp_path / "study", Fake(2, lambda job, attempt: "died" if job.cell == deadly else "done"))
    assert list(study.failures(plan)) == [plan.cells[0].label]
    assert f"died {ATTEMPTS} times" in study.failures(plan)[plan.cells[0].label]
    assert len(study.records(plan)) == 17


def test_two_studies_do_not_write_into_one_folder(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    with study.locked(), pytest.raises(UserError, match="another study"), StudyFolder(tmp_path / "study").locked():
        pass


def test_has_half_wants_all_of_it(tmp_path: Path) -> None:
    config = plan_of(tmp_path).cells[0].config
    folder = tmp_path / "cell"
    folder.mkdir()
    assert not has_half(folder, config)
    have_half(folder)
    assert has_half(folder, config)
    (folder / "phases/landscape_after_task1.json").unlink()
    assert not has_half(folder, config)


# Records and reports


def made_up(plan: Plan, *, slope: float = 1.0) -> list[dict[str, Any]]:
    """Records in which forgetting follows the mean rise within pairs."""
    records = []
    for n, cell in enumerate(plan.cells):
        rise = 0.1 + 0.37 * n % 1
        records.append(
            {
                "cell": cell.id,
                "pair": cell.pair,
                "tasks": list(cell.config.data.tasks),
                "factors": dict(cell.factors),
                "arm": cell.arm,
                "measures": {"mean_rise": rise, "update_norm": 5 + n % 3, "second_order": slope * rise + 0.1},
                "outcomes": {
                    "forgetting_loss": slope * rise + len(cell.pair) % 5,
                    "retention_loss": 1 + slope * rise,
                    "observed": slope * rise,
                    "learning_loss": 3 + 0.1 * (n % 4),
                    "mean_rise_after": rise + 0.2,
                },
                "stderrs": {"mean_rise": 0.01},
                "versions": {"python": "3"},
                "wall_seconds": 1.0,
            }
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


def test_without_the_primary_measure_there_is_no_conclusion(tmp_path: Path) -> None:
    plan = big(tmp_path)
    found = analyse(made_up(plan), Analysis(primary="trace", measures=("trace",), baseline="adamw"), plan.arms)
    assert found["answers"] == {"flatness": "No conclusion: none of 72 runs has Hessian trace, the primary measure."}


def test_numbers_that_are_not_finite_come_back_as_such(tmp_path: Path) -> None:
    (record, *_) = made_up(big(tmp_path))
    record["measures"]["mean_rise"] = "nan"
    assert str(runs_of([record])[0].measures["mean_rise"]) == "nan"


def test_what_a_run_did_not_measure_is_left_out() -> None:
    found = numbers_of({"landscapes": {}, "task_names": ["a", "b"]})
    assert found == {"measures": {}, "outcomes": {}, "stderrs": {}}


def test_no_name_is_a_measure_and_an_outcome() -> None:
    assert not set(MEASURES) & set(OUTCOMES)


def stored(tmp_path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    plan = big(tmp_path)
    return {
        "name": "big",
        "study": plan.content,
        "planned": len(plan.cells),
        "arms": plan.arms,
        "analysis": asdict(plan.analysis),
        "failures": {"one cell": "no such luck"},
        "records": made_up(plan),
    }


def test_stored_records_are_taken_over_and_only_the_rest_is_computed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    first, again = StudyFolder(tmp_path / "first"), StudyFolder(tmp_path / "again")
    run_study(dataclasses.replace(plan, cells=plan.cells[:5]), first, Fake(1), threads=1)
    again.take_over(plan, [*first.records(plan), {"cell": "of another study"}])
    engine = Fake(1)
    run_study(plan, again, engine, threads=1)
    assert [job.cell for job in engine.begun] == [cell.id for cell in plan.cells[5:]]
    assert again.records(plan)[:5] == first.records(plan)


def test_records_are_the_same_bytes_for_the_same_records(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json.gz", tmp_path / "other.json.gz"
    write_records(stored(tmp_path), one)
    write_records(stored(tmp_path), other)
    assert one.read_bytes() == other.read_bytes()
    assert json.loads(gzip.decompress(one.read_bytes()))["planned"] == 72


def test_a_report_holds_answers_tables_figures_and_failures(tmp_path: Path) -> None:
    write_records(stored(tmp_path), tmp_path / "records.json.gz")
    content = write_report(read_records(tmp_path / "records.json.gz"), tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert content["figures"] == [f"study_{name}.png" for name in ("measures", "flatness", "forecast", "trade_off")]
    assert all((tmp_path / name).stat().st_size > 5000 for name in content["figures"])
    for part in ("Does a flatter landscape go with less forgetting?", "| mean rise of the loss* |", "no such luck"):
        assert part in text
    assert "72 runs of 6 task pairs" in text


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"{}"), gzip.compress(b"[1]")])
def test_what_is_no_record_file_ends_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "records.json.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"records\.json\.gz that a study wrote"):
        read_records(tmp_path / "records.json.gz")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda records: records[1].pop("pair"), "record 1 must hold arm, cell"),
        (lambda records: records.insert(0, 3), "record 0 must hold"),
        (
            lambda records: records[2]["measures"].update(mean_rise="high"),
            "record 2: measures.mean_rise must be a number",
        ),
        (lambda records: records[0].update(outcomes=[1.0]), "record 0: outcomes.all must be a number"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path: Path, spoil: Callable[[Any], Any], said: str) -> None:
    content = json.loads(json.dumps(stored(tmp_path)))
    spoil(content["records"])
    write_records(content, tmp_path / "records.json.gz")
    with pytest.raises(UserError, match=re.escape(said)):
        read_records(tmp_path / "records.json.gz")


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
