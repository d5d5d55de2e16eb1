"""report.html and compare.html as text: what is in them, what may not be, and what ends in one line."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import plotly.graph_objects as go
import pytest
from runs import ROOT, SmokeRun, same_results
from test_study_plan import stored

import llm_forgetting as lf
from llm_forgetting.cli.main import main
from llm_forgetting.config.files import parse_config
from llm_forgetting.experiment import publish
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.experiment import run_experiment
from llm_forgetting.files import encode, from_plain, to_plain
from llm_forgetting.forgetting.differences import independent_difference
from llm_forgetting.forgetting.intervals import wilson
from llm_forgetting.forgetting.records import ItemRecord, Line
from llm_forgetting.progress import Silent
from llm_forgetting.report.figures import run as figures
from llm_forgetting.report.html.blocks import Figures, Heats, Listing, Page, Points, Section, plain
from llm_forgetting.report.html.files import write_run_report
from llm_forgetting.report.html.items import MOST_ITEMS, item_listing
from llm_forgetting.report.html.page import render
from llm_forgetting.report.html.run import run_page
from llm_forgetting.report.html.study import study_page
from llm_forgetting.report.html.surfaces import MOST_IN_3D
from llm_forgetting.report.tables.compare import Compared, Quantity, compare_tables, difference_text
from llm_forgetting.report.tables.run import value_and_error
from llm_forgetting.report.tables.study import LEVEL, QUESTIONS, conclusions, verdict
from llm_forgetting.results import Results, read_items
from llm_forgetting.study.report import write_report
from llm_forgetting.study.statistics.power import SIGNIFICANCE

Content = dict[str, Any]
HOSTILE = "<script>alert('1')</script>&\"%{x}"
EVENTS = re.compile(r"^on[a-z]+$")


@pytest.fixture
def results(smoke_run: SmokeRun) -> Content:
    return copy.deepcopy(smoke_run.results)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Content]:
    """A study's folder of made-up records, and its study.json."""
    folder = tmp_path_factory.mktemp("study")
    content = write_report(stored(folder), folder)
    return folder, json.loads(json.dumps(content))


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._within and self._within[-1] == "script":
            self.scripts[-1] += data
        elif not self._within or self._within[-1] != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page_of(results: Content, items: list[Line] | None = None) -> Elements:
    return Elements(render(run_page(record(results), items or [])))


def record(results: Content) -> Results:
    """The record of results.json."""
    return from_plain(Results, copy.deepcopy(results))


def listing_of(items: list[Line], results: Content) -> Listing | None:
    return item_listing(items, results["task_names"], results["forgetting"]["train"]["checkpoints"])


def blocks_of(page: Page, kind: type) -> list[Any]:
    return [block for section in page.sections for block in section.blocks if isinstance(block, kind)]


def renamed(content: Any, old: str, new: str) -> Any:
    """The content with one task's name exchanged everywhere, in keys as well."""
    if isinstance(content, dict):
        return {key.replace(old, new): renamed(value, old, new) for key, value in content.items()}
    if isinstance(content, list):
        return [renamed(value, old, new) for value in content]
    return content.replace(old, new) if isinstance(content, str) else content


def spoilt(content: Any) -> Any:
    """The content with every number that is not whole exchanged for "nan"."""
    if isinstance(content, dict):
        return {key: spoilt(value) for key, value in content.items()}
    if isinstance(content, list):
        return [spoilt(value) for value in content]
    return "nan" if isinstance(content, float) else content


# --- a file that needs nothing else ----------------------------------------------------------------------------------------


def test_a_run_leaves_its_report_and_says_so(smoke_run: SmokeRun) -> None:
    path = smoke_run.path / "report.html"
    assert 4_000_000 < path.stat().st_size < 8_000_000
    assert f"  look at it: open {path} in a browser\n" in smoke_run.stdout


def test_plotly_is_there_once_and_nothing_is_loaded(smoke_run: SmokeRun, study: tuple[Path, Content]) -> None:
    for path in (smoke_run.path / "report.html", study[0] / "report.html"):
        page = Elements(path.read_text(encoding="utf-8"))
        assert sum("plotly.js v" in script for script in page.scripts) == 1
        for tag, attributes in page.found:
            assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
            assert not {"src", "srcset", "action", "data"} & set(attributes), (tag, attributes)
            assert not any(EVENTS.match(name) for name in attributes), (tag, attributes)
            assert (attributes.get("href") or "#").startswith("#")
        (policy,) = (entry["content"] for entry in page.of("meta") if entry.get("http-equiv"))
        assert policy is not None
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
        own = [script for script in page.scripts if "plotly.js v" not in script]
        assert not any("http://" in script or "https://" in script or "@import" in script for script in own)


def test_a_page_without_plots_has_no_plotly() -> None:
    text = render(Page("t", "k", [("", ["said"])], [Section("a", "A", [])]))
    assert "plotly.js v" not in text
    assert len(text) < 40_000


# --- what is in it ---------------------------------------------------------------------------------------------------------


def test_the_answer_comes_first_and_every_section_has_a_heading(results: Content, smoke_run: SmokeRun) -> None:
    page = page_of(results, read_items(smoke_run.path))
    before, _, _ = page.text.partition("Accuracy and loss")
    assert results["answer"] in before
    for warning in results["warnings"]:
        assert warning in before
    assert [tag for tag, _ in page.found if tag in ("header", "nav", "main", "footer")] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    assert len(page.of("h1")) == 1
    anchors = {entry["id"] for entry in page.of("section") if "id" in entry}
    assert {str(entry["href"])[1:] for entry in page.of("a")} == anchors | {"content"}
    for words in (
        "What kind of forgetting",
        results["config_fingerprint"],
        "llm-forgetting run --config config.yaml",
        "torch",
    ):
        assert words in page.text


def test_every_plot_says_in_words_what_it_shows_and_plotly_knows_its_fields(results: Content) -> None:
    page = page_of(results)
    plots = [entry for entry in page.of("div") if entry.get("class") == "plot"]
    assert len(plots) == len(page.of("figure")) > 10
    assert all(len(entry["aria-label"] or "") > 20 for entry in plots)
    assert sum(entry.get("data-link") == "surfaces" for entry in plots) == 4
    colours = {"@ink": "#000000", "@quiet": "#777777", "@ground": "#ffffff"}
    for script in page.scripts:
        if script.startswith('{"alt"'):
            for part in re.findall(r'"(@[^"]*)"', script):
                script = script.replace(f'"{part}"', f'"{colours.get(part.split("/")[0], "#0072B2")}"')  # noqa: PLW2901
            spec = json.loads(script)
            go.Figure(data=spec["data"], layout=spec["layout"])


def test_every_table_cell_of_r_is_coloured_and_written_out(results: Content) -> None:
    results["forgetting"]["train"]["accuracy"]["cells"][1][1].update(value="nan", stderr="nan")
    (heats,) = blocks_of(run_page(record(results), []), Heats)
    trained, held_out = heats.maps
    assert trained.rows[1][1][1].colour == ""
    assert trained.rows[1][1][1].lines[0] == "nan"
    assert all(cell.colour.startswith("#") for _, cells in held_out.rows for cell in cells)
    assert [[cell.framed for cell in cells] for _, cells in held_out.rows] == [
        [False, False],
        [True, False],
        [False, True],
    ]
    assert sum("hatched" in (entry.get("class") or "") for entry in page_of(results).of("td")) == 1


def test_surfaces_have_their_own_scale_and_one_of_all(results: Content) -> None:
    solid, flat = blocks_of(run_page(record(results), []), Figures)[:2]
    assert solid.scales
    assert len({json.dumps(plot.layout["scene"]["zaxis"]["range"]) for plot in solid.plots}) == 4
    assert len({(plot.data[0]["cmin"], plot.data[0]["cmax"]) for plot in solid.plots}) == 4
    alike = [plot.alike for plot in solid.plots]
    assert len({json.dumps(plot.layout["scene"]) for plot in alike}) == 1
    assert len({(plot.data[0]["cmin"], plot.data[0]["cmax"]) for plot in alike}) == 1
    own, shared = (
        [next(trace for trace in plot.data if trace["type"] == "heatmap") for plot in plots]
        for plots in (flat.plots, [plot.alike for plot in flat.plots])
    )
    assert [heat["customdata"] for heat in own] == [heat["customdata"] for heat in shared]
    assert [len({(heat["zmin"], heat["zmax"]) for heat in heats}) for heats in (own, shared)] == [4, 1]
    landscape = results["landscapes"].pop("after_task2")
    for entry in (landscape, results["landscapes"]["after_task1"]):
        entry["surfaces"].pop("synthetic_2")
    results["landscape_comparison"] = []
    assert not blocks_of(run_page(record(results), []), Figures)[0].scales


def test_what_did_not_converge_says_so_at_the_figure(results: Content) -> None:
    results["landscapes"]["after_task1"]["fit"]["tolerance"] = 1e-9
    assert page_of(results).text.count("NOT CONVERGED") >= 6


def test_more_surfaces_than_a_page_can_hold_are_contours_only(results: Content) -> None:
    surfaces = results["landscapes"]["after_task1"]["surfaces"]
    surfaces |= {f"more_{n}": surfaces["synthetic_1"] for n in range(9)}
    figures = blocks_of(run_page(record(results), []), Figures)
    assert len(figures[0].plots) == MOST_IN_3D
    assert len(figures[1].plots) == 13
    assert "4 more surfaces" in figures[0].note


def test_items_are_told_one_by_one_and_the_lost_ones_first(results: Content, smoke_run: SmokeRun) -> None:
    items = read_items(smoke_run.path)
    listing = listing_of(items, results)
    assert listing is not None
    assert len(listing.rows) == 48 * 2
    column = listing.header.index("became")
    lost = [row for row in listing.rows if row[column] == "lost" and row[2] == "trained"]
    task = results["forgetting"]["train"]["accuracy"]["tasks"][0]["change"]
    assert len(lost) == task["only_before"]
    assert listing.rows[0][column] == "lost"
    by = {(i.checkpoint, i.id): i for i in items if isinstance(i, ItemRecord) and i.task == "synthetic_1"}
    for row in listing.rows[:5]:
        assert row[listing.header.index("right")] == by["after_task1", row[0]].answer
        assert row[listing.header.index("after task 2")] == by["after_task2", row[0]].predicted


def test_too_many_items_are_cut_and_that_is_said(
    results: Content, smoke_run: SmokeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_ITEMS >= 1000
    monkeypatch.setattr("llm_forgetting.report.html.items.MOST_ITEMS", 50)
    listing = listing_of(read_items(smoke_run.path), results)
    assert isinstance(listing, Listing)
    assert len(listing.rows) == 50
    assert "46 more items" in listing.note


# --- what must not break it ------------------------------------------------------------------------------------------------


def test_hostile_names_are_text(results: Content, smoke_run: SmokeRun) -> None:
    results["spurious"] = {}
    evil = renamed(results, "synthetic_1", HOSTILE)
    lines = to_plain(read_items(smoke_run.path), list[Line])
    page = page_of(evil, from_plain(list[Line], renamed(lines, "synthetic_1", HOSTILE)))
    assert HOSTILE.replace("_", " ") in page.text
    clean = page_of(results, read_items(smoke_run.path))
    assert [tag for tag, _ in page.found] == [tag for tag, _ in clean.found]
    for script in page.scripts:
        if script.startswith('{"alt"'):
            assert "<script" not in script
            titles = [trace.get("name", "") for trace in json.loads(script)["data"]]
            assert not any("<script" in title or "%{" in title for title in titles)
    assert plain("<b>%{z}") == "&lt;b&gt;% {z}"


def test_no_number_is_invented_where_none_is_finite(results: Content) -> None:
    tau = results["config"]["landscape"]["tau"]
    for part in ("landscapes", "landscape_comparison", "paths", "checkpoint_plane"):
        kept = copy.deepcopy(results[part])
        results[part] = spoilt(results[part])
        if part == "landscapes":
            for name, entry in results[part].items():
                entry.update({key: kept[name][key] for key in ("alphas", "betas", "distance")})
                for surface in entry["surfaces"].values():
                    surface["lines"]["basin_radius"]["tau"] = tau
                    surface["lines"]["steps"] = next(iter(kept[name]["surfaces"].values()))["lines"]["steps"]
        if part == "checkpoint_plane":
            results[part].update({key: kept[key] for key in ("alphas", "betas", "outline", "checkpoints")})
    for phase in results["training"]:
        for entry in phase["log"]:
            entry["loss"] = "nan"
    page = page_of(results)
    assert "nan" in page.text
    surfaces = [json.loads(script)["data"] for script in page.scripts if '"type":"surface"' in script]
    assert len(surfaces) == 4
    assert all(value is None for (surface, _) in surfaces for row in surface["z"] for value in row)


def test_one_cell_that_is_not_finite_is_a_gap_over_hatching(results: Content) -> None:
    surface = results["landscapes"]["after_task1"]["surfaces"]["synthetic_1"]
    surface["loss"][3][5] = "nan"
    contours = blocks_of(run_page(record(results), []), Figures)[1].plots[0]
    hatched, heat = contours.data[:2]
    assert hatched["fillpattern"]["shape"] == "/"
    assert heat["z"][5][3] is None
    assert heat["zsmooth"] is False


def test_what_was_not_measured_is_left_out_with_a_sentence(results: Content) -> None:
    results.update(paths=[], checkpoint_plane=None, forecasts=[], curvature={}, spurious={})
    text = page_of(results).text
    for words in (
        "path between checkpoints was not measured",
        "Nothing was forecast",
        "were not computed in this run",
        "No items",
    ):
        assert words in text


def test_a_failure_to_draw_does_not_lose_the_run(
    results: Content, smoke_run: SmokeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watcher(Silent):
        said: ClassVar[list[str]] = []

        def warn(self, message: str) -> None:
            self.said.append(message)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(publish, "write_run_report", broken)
    monkeypatch.setattr(figures, "save", lambda figure, stem, dpi: None)
    folder = tmp_path / "run"
    shutil.copytree(smoke_run.path, folder)
    (folder / "report.html").unlink()
    config = parse_config(str(folder / "config.yaml"), [], resumed=True)
    again = run_experiment(config, RunFolder(folder), Watcher())
    assert same_results(json.loads(encode(again)), results)
    assert any("report.html could not be written (ZeroDivisionError('no ink'))" in said for said in Watcher.said)
    assert not (folder / "report.html").exists()


# --- studies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_answers_its_questions_first(study: tuple[Path, Content]) -> None:
    folder, content = study
    page = Elements((folder / "report.html").read_text(encoding="utf-8"))
    before, _, after = page.text.partition("What goes with forgetting")
    assert content["answers"]["flatness"] in before
    assert "one cell failed: no such luck" in before
    assert "72 of 72" in before
    for words in (
        "mean rise of the loss*",
        "sam instead of adamw",
        "llm-forgetting study study.yaml",
        "Spearman's rho over all runs",
    ):
        assert words in after
    assert len(page.of("figure")) == 4


@pytest.mark.slow
def test_a_study_opens_with_a_word_its_model_and_a_picture(study: tuple[Path, Content]) -> None:
    content = {**study[1], "model": "a random two-layer network", "tasks": "synthetic tasks"}
    page = study_page(content)
    assert page.set_up == "Model: a random two-layer network. Tasks: synthetic tasks."
    ((question, (word, said)),) = page.answers
    assert question == QUESTIONS["flatness"]
    assert word == f"{verdict(content)}."
    assert said == content["answers"]["flatness"]
    assert isinstance(page.sections[0].blocks[0], Figures)
    assert [block.heading for block in page.sections[1].blocks if isinstance(block, Points)] == [
        asked for asked, _ in conclusions(content)[1:]
    ]


def test_the_verdict_of_a_study_is_a_word() -> None:
    def said(**primary: Any) -> str:
        given = {"refusal": None, "p_value": 0.01, "spearman_within_pairs": {"value": 0.5}, **primary}
        return verdict({"associations": {"primary": "trace", "measures": {"trace": given}}})

    assert LEVEL == SIGNIFICANCE
    assert said() == "Yes, in these runs"
    assert said(spearman_within_pairs={"value": -0.5}) == "No: in these runs flatter ones forgot more"
    refused = ({"p_value": 0.06}, {"p_value": None}, {"refusal": "too few"}, {"spearman_within_pairs": None})
    assert {said(**each) for each in refused} == {"Not shown"} == {verdict({})}


@pytest.mark.slow
def test_a_study_without_numbers_says_so(study: tuple[Path, Content]) -> None:
    content = {
        key: value for key, value in study[1].items() if key not in ("associations", "effects", "calibration", "points")
    }
    text = Elements(render(study_page(content))).text
    for words in ("nothing was associated", "No forecast was compared", "compares no interventions"):
        assert words in text


# --- commands --------------------------------------------------------------------------------------------------------------


def copied(smoke_run: SmokeRun, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({**smoke_run.results, **changes}))
    return folder


def test_report_draws_again_without_torch_and_in_seconds(
    smoke_run: SmokeRun, study: tuple[Path, Content], tmp_path: Path
) -> None:
    """Also where the run's methods are those of a package that this machine lacks, or would import torch."""
    config = smoke_run.results["config"]
    methods = {"kl": {}, "somebody_elses": {"strength": 1}}
    config = {**config, "training": {**config["training"], "methods": methods}}
    run = copied(smoke_run, tmp_path / "run", config=config)
    study_folder = tmp_path / "study"
    study_folder.mkdir()
    (study_folder / "study.json").write_bytes((study[0] / "study.json").read_bytes())
    program = (
        "import sys; from llm_forgetting.cli.main import main; "
        "status = [main(['report', folder]) for folder in sys.argv[1:]]; "
        "assert status == [0, 0] and not {'torch', 'transformers'} & set(sys.modules), status"
    )
    command = [sys.executable, "-c", program, str(run), str(study_folder)]
    subprocess.run(command, check=True, timeout=60, env={"PYTHONPATH": str(ROOT / "src")})
    for folder, old in ((run, smoke_run.path), (study_folder, study[0])):
        new = (folder / "report.html").read_text(encoding="utf-8")
        if folder is study_folder:
            assert new == (old / "report.html").read_text(encoding="utf-8")
        else:
            assert "items.jsonl is missing" in new


def complaints(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def unfit(smoke_run: SmokeRun, folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders that are no finished run or study, and a word of what is said about each."""
    for name in ("nothing", "unfinished/phases", "begun/cells", "cut", "listed"):
        (folder / name).mkdir(parents=True)
    (folder / "unfinished/config.yaml").touch()
    (folder / "cut/results.json").write_text('{"answer": "aft')
    (folder / "listed/results.json").write_text("[]")
    yield folder / "nowhere", "is no folder"
    yield folder / "nothing", "holds none of them"
    yield folder / "unfinished", "llm-forgetting run --resume"
    yield folder / "begun", "unfinished study"
    yield folder / "cut", "must be JSON"
    yield folder / "listed", "listed/results.json: the whole: Input should be a dictionary"
    old = copied(smoke_run, folder / "old")
    content = {key: value for key, value in smoke_run.results.items() if key != "forecasts"}
    (old / "results.json").write_text(json.dumps(content))
    yield old, "old/results.json: forecasts: Field required"


def test_folders_that_are_no_run_or_study_end_in_one_line(
    smoke_run: SmokeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, words in unfit(smoke_run, tmp_path):
        assert words in complaints(["report", str(folder)], capsys)
        assert not (folder / "report.html").exists()


def test_compare_sets_runs_side_by_side(
    smoke_run: SmokeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy.deepcopy(smoke_run.results["config"])
    config["lora"]["rank"] = 77
    config["output"]["dpi"] = 99
    one, other = copied(smoke_run, tmp_path / "one"), copied(smoke_run, tmp_path / "other", config=config, curvature={})
    page = tmp_path / "side.html"
    assert main(["compare", str(one), str(other), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert "replaced" not in said
    assert main(["compare", str(one), str(other), "--output", str(page)]) == 0
    assert f"The same as a page: {page} (replaced the file that was there)" in capsys.readouterr().out
    assert "lora.rank" in said
    assert "dpi" not in said
    assert "training.seed" not in said
    elements = Elements(page.read_text(encoding="utf-8"))
    headings = [heading for heading in elements.text.splitlines() if heading.endswith("loss of synthetic 1")]
    assert headings[:2] == ["A, after task 1: loss of synthetic 1", "B, after task 1: loss of synthetic 1"]
    assert elements.text.count(smoke_run.results["answer"]) == 2
    lost = smoke_run.results["forgetting"]["train"]["accuracy"]["tasks"][0]["absolute"]
    assert elements.text.count(value_and_error(lost["value"], lost["stderr"])) >= 2
    assert f"A: {one}\nB: {other}\n" in said


def test_a_measure_that_one_run_lacks_is_a_dash(results: Content) -> None:
    runs = [
        Compared("A", "a", record(results), {"trace": Quantity(3.0, 0.5), "largest": Quantity(31.6253, 2e-13)}),
        Compared("B", "b", record(results), {"trace": Quantity(None), "largest": Quantity(104048.3)}),
    ]
    table = compare_tables(runs)[3]
    assert table.header == ("number", "A", "B", "B - A")
    assert table.rows == (("trace", "3.0 ± 0.5", "-", "-"), ("largest", "31.63", "104,048", "+104,017"))
    assert [len(row) for row in compare_tables([*runs, runs[0]])[3].rows] == [4, 4]


def test_a_difference_has_the_error_that_both_runs_know_of() -> None:
    # Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80.
    interval = independent_difference(48 / 80, 56 / 70, wilson(48, 80), wilson(56, 70))
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    first, second = (Quantity(n / of, 0.05, interval=wilson(n, of)) for n, of in ((48, 80), (56, 70)))
    assert difference_text(first, second) == "+0.20 [+0.05, +0.33]"
    assert difference_text(second, first) == "-0.20 [-0.33, -0.05]"
    # Welch: both of variance 0.01 from four directions, so 6 degrees of freedom, 2.4469 * sqrt(0.02) = 0.3460.
    assert difference_text(Quantity(0.5, 0.1, 4), Quantity(0.9, 0.1, 4)) == "+0.40 [+0.05, +0.75]"
    assert difference_text(Quantity(0.5, 0.3), Quantity(0.2, 0.4)) == "-0.3 ± 0.5"
    assert difference_text(Quantity(0.5), Quantity(0.75, 0.4)) == "+0.25"


def test_a_comparison_fits_80_columns_and_breaks_no_value(
    smoke_run: SmokeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folders = [str(copied(smoke_run, tmp_path / name)) for name in ("one", "two")]
    assert main(["compare", *folders, "--output", str(tmp_path / "side.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if str(tmp_path) not in line]
    assert max(map(len, shown)) <= 80
    runs = [Compared(letter, letter, record(smoke_run.results), {}) for letter in "AB"]
    for table in compare_tables(runs)[:3]:
        for row in table.rows:
            assert any(all(cell in line for cell in row[1:]) for line in shown), row
    assert sum("+0.00 [" in line for line in shown) >= 16


def test_compare_refuses_what_it_cannot_compare(
    smoke_run: SmokeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(smoke_run.path)
    assert "at least two runs" in complaints(["compare", run], capsys)
    assert "is not one" in complaints(["compare", run, str(tmp_path)], capsys)
    assert "must be writable" in complaints(["compare", run, run, "--output", str(tmp_path / "no/where.html")], capsys)


def test_the_same_results_give_the_same_bytes(results: Content, tmp_path: Path) -> None:
    first = write_run_report(record(results), [], tmp_path).read_bytes()
    assert write_run_report(record(results), [], tmp_path).read_bytes() == first


@pytest.mark.process
def test_a_run_without_surfaces_and_probes_speaks_of_none_and_has_no_empty_table(tmp_path: Path) -> None:
    run = lf.Experiment(
        "smoke",
        training={"num_epochs": 1, "methods": {"new_adapter": {}}},
        evaluation={"rotations": False, "recovery_items": 0},
        landscape={"tasks": "none", "paths": False, "checkpoint_plane": False},
        curvature={"forecast": False},
        output={"figures": False},
    ).run(tmp_path, quiet=True)
    assert main(["report", str(run.folder)]) == 0
    page, summary = ((run.folder / name).read_text(encoding="utf-8") for name in ("report.html", "results.md"))
    assert "an adapter of its own for every task" in page
    assert "no item is both trained on and held out" in page
    for said in ("Landscapes are of", "Surfaces are fits", "A forecast is", "MMLU has no training split"):
        assert said not in page
    assert not re.search(r"<tbody>\s*</tbody>", page)
    assert not re.search(r"\| --- \|\n(?!\|)", summary)
