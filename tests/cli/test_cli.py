"""The command line as a user meets it: exit statuses, one line on stderr for every mistake, and no network."""

import errno
import io
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from runs import ROOT, THOROUGH, TINY, Moment, Shell, read_results, same_results

import llm_forgetting
from llm_forgetting import errors, progress
from llm_forgetting.cli.main import guarded, main, run_main
from llm_forgetting.cli.parser import EXAMPLES
from llm_forgetting.cli.run import SHORT_FLAGS
from llm_forgetting.config.files import dotted_paths
from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.config.sections import ModelConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.analysis.checkpoint_plane import plane_evaluations
from llm_forgetting.experiment.analysis.landscape import evaluations
from llm_forgetting.experiment.analysis.paths import path_evaluations
from llm_forgetting.models.language.backbones import synthetic_backbone

QUESTIONS = 12


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in MMLU's layout with two subjects of health and one of philosophy."""
    folder = tmp_path_factory.mktemp("mmlu")
    for subject in ("anatomy", "virology", "philosophy"):
        for split, count in (("dev", 2), ("val", 3), ("test", QUESTIONS - 3)):
            (folder / split).mkdir(exist_ok=True)
            rows = [f"{subject} {split} {row}?,one,two,three,four,{'ABCD'[row % 4]}\n" for row in range(count)]
            (folder / split / f"{subject}_{split}.csv").write_text("".join(rows))
    return folder


def dry(shell: Shell, mmlu: Path, *arguments: object) -> str:
    """The complaint about a dry run on the local subjects."""
    sizes = [
        "--data.train_items",
        "6",
        "--data.test_items",
        "4",
        "--landscape.num_items",
        "6",
        "--landscape.self_test_items",
        "4",
    ]
    source = ["--data.source", "local", "--data.path", mmlu]
    return shell.run("--dry_run", *source, *sizes, *arguments).complaint


# --- commands and help ------------------------------------------------------------------------------------------------


def test_without_a_command_the_usage_is_shown_and_the_status_is_2(shell: Shell) -> None:
    done = shell()
    assert (done.status, done.stderr) == (2, "")
    for command in ("run", "repair", "landscape", "tasks"):
        assert f"{command} " in done.stdout


def test_help_is_no_mistake(shell: Shell) -> None:
    for command in ([], ["run"], ["repair"], ["landscape"], ["evaluate"], ["study"], ["tasks"]):
        assert shell(*command, "--help").status == 0


def test_an_unknown_command_is_named_with_those_there_are(shell: Shell) -> None:
    commands = "run, repair, landscape, forecast, evaluate, study, report, compare, check, tasks"
    assert shell("runn").complaint == f"a command is needed, one of {commands}; was 'runn'; did you mean run?"
    assert shell("xyz").complaint == f"a command is needed, one of {commands}; was 'xyz'"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_the_package_s(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    assert capsys.readouterr().out == f"llm-forgetting {llm_forgetting.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", llm_forgetting.__version__)


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_help_ends_with_examples_that_name_only_what_there_is(shell: Shell, command: str) -> None:
    text = shell(command, "--help").stdout
    for example, what in EXAMPLES[command]:
        assert example in text
        assert what in text
        program, named, *words = example.split()
        before, _, after = shell(named, "--help").stdout.partition("examples:")
        fields = after.partition("by its dotted path:")[2]
        assert program == "llm-forgetting"
        assert all(f"{word} " in before + fields for word in words if word.startswith("--"))


def test_help_lists_no_option_that_is_only_a_section(shell: Shell) -> None:
    assert "Path to a configuration file" not in shell.run("--help").stdout


def test_help_shows_short_flags_and_every_dotted_path(shell: Shell) -> None:
    text = shell.run("--help").stdout
    for flag in (*SHORT_FLAGS, "--config", "--resume", "--print_config", "--dry_run", "--tasks", "--task1", "--task2"):
        assert f"{flag} " in text
    for path in dotted_paths():
        assert f"--{path}" in text


@pytest.mark.process
@pytest.mark.parametrize("start", [["main.py"], ["-m", "llm_forgetting", "run"]])
def test_main_py_and_the_module_are_the_same_command(start: list[str]) -> None:
    environment = {"PYTHONPATH": str(ROOT / "src") if start[0] == "-m" else "", "PATH": ""}
    command = [sys.executable, *start, "--task1", "computer_science", "--task2", "philosophy"]
    command += ["--batch_size", "16", "--num_epochs", "3", "--print_config"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    config = yaml.safe_load(done.stdout)
    assert config["data"]["tasks"] == ["computer_science", "philosophy"]
    assert (config["training"]["batch_size"], config["training"]["num_epochs"]) == (16, 3)
    assert done.stderr == ""


@pytest.mark.process
def test_what_parses_configurations_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from llm_forgetting.cli.run import parse_run; parse_run([]); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--version"], "llm-forgetting "),
        (["tasks", "--source", "synthetic"], "synthetic_1"),
        (["compare", "--help"], "llm-forgetting compare"),
        (["--config", "smoke", "--print_config"], "num_epochs: 12"),
        (["run", "--config", "smoke", "--print_config"], "num_epochs: 12"),
    ],
)
def test_main_py_takes_every_command_and_the_options_of_run(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    try:
        assert run_main() == 0
    except SystemExit as stopped:
        assert stopped.code == 0  # noqa: PT017 -- argparse's help
    assert said in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["main.py", "reprot", "x"])
    assert run_main() == 2
    assert "did you mean report?" in capsys.readouterr().err


def test_hints_name_the_command_that_works_where_the_user_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / "env" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "llm-forgetting"):
        (programs / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(programs / "llm-forgetting")])
    assert errors.program() == "env/bin/llm-forgetting"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "main.py")])
    assert errors.program() == f"env/bin/python {ROOT / 'main.py'}"
    monkeypatch.setenv("PATH", str(programs))
    assert errors.program() == f"python {ROOT / 'main.py'}"
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert errors.program() == "llm-forgetting"
    (programs / "llm-forgetting").unlink()
    assert errors.program() == "python -m llm_forgetting"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EACCES, "allow this user to read and write there"),
        (errno.EROFS, "choose a folder that can be written"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.ENOLCK, "choose a disk that can lock files"),
        (errno.EIO, "check that disk"),
    ],
)
def test_what_the_system_refuses_is_one_line_by_its_number(
    number: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(arguments: list[str]) -> int:
        raise OSError(number, "no", *arguments)

    assert guarded(refuse, ["some/file"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: some/file could not be used: no; {words}\n"
    assert guarded(refuse, []) == 2
    assert capsys.readouterr().err == f"error: a file could not be written: no; {words}\n"


def test_a_terminal_of_ascii_is_written_to_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(paper, encoding="ascii"))

    def speak(arguments: list[str]) -> int:
        progress.say("0.42 ± 0.01 ≤ 1 ß")
        return 0

    assert guarded(speak, []) == 0
    assert paper.getvalue() == b"0.42 +/- 0.01 <= 1 ?\n"


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "status"), [("tasks --source synthetic >&-", 0), ("tasks --source synthetic >/dev/full", 2)]
)
def test_a_stdout_that_takes_nothing_is_no_traceback(command: str, status: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} main.py {command}"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_tasks_lists_the_synthetic_subjects(shell: Shell) -> None:
    done = shell("tasks", "--source", "synthetic")
    assert done.status == 0
    for number in (1, 2, 3, 4):
        assert re.search(rf"synthetic_{number} +400", done.stdout)


def test_tasks_lists_local_subjects_and_their_groups_with_counts(shell: Shell, mmlu: Path) -> None:
    done = shell("tasks", "--source", "local", "--path", mmlu)
    assert done.status == 0
    for subject in ("anatomy", "philosophy", "virology"):
        assert re.search(rf"\b{subject} +{QUESTIONS}\b", done.stdout)
    assert re.search(rf"\bhealth +{2 * QUESTIONS} +anatomy, virology", done.stdout)
    assert re.search(rf"\bgroup:philosophy +{QUESTIONS} +philosophy", done.stdout)


def test_tasks_refuses_what_it_cannot_list(shell: Shell, tmp_path: Path) -> None:
    assert (
        "'embedded', 'local', 'hub', 'embedded_text', 'skills', 'synthetic'"
        in shell("tasks", "--source", "foo").complaint
    )
    assert "data.path" in shell("tasks", "--source", "local").complaint
    assert (
        f"data.path={tmp_path / 'no'} does not exist"
        in shell("tasks", "--source", "local", "--path", tmp_path / "no").complaint
    )


# --- mistakes in tasks and data -----------------------------------------------------------------------------------------


def test_an_unknown_task_is_answered_with_the_nearest_names(shell: Shell, mmlu: Path) -> None:
    message = dry(shell, mmlu, "--task1", "virolgy", "--task2", "anatomy")
    assert "'virolgy' is not in this data source; nearest: virology" in message


def test_an_unknown_task_ends_a_run_before_a_model_is_loaded(shell: Shell) -> None:
    done = shell.run_tiny("--task1", "synthetic1", "--model_name", "nobody/nothing", "--data.source", "synthetic")
    assert done.complaint.startswith("task 'synthetic1' is not in this data source; nearest: synthetic_1")
    assert "was finished" not in done.complaint


def test_tasks_that_share_a_subject_are_refused(shell: Shell, mmlu: Path) -> None:
    assert "tasks health and anatomy share anatomy" in dry(shell, mmlu, "--tasks", "health,anatomy")
    assert "task anatomy is named twice" in dry(shell, mmlu, "--tasks", "anatomy,Anatomy")


def test_too_few_items_are_counted(shell: Shell, mmlu: Path) -> None:
    message = dry(shell, mmlu, "--tasks", "anatomy,virology", "--data.train_items", "20")
    assert "task anatomy has 12 distinct items" in message
    assert "20 train and 4 test" in message


def test_missing_and_broken_data_are_named(shell: Shell, mmlu: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"data.path={missing} does not exist" in dry(shell, mmlu, "--data.path", missing)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "anatomy_test.csv").write_text("q,a,b,c,d,A\nq,a,b,c,d,E\n")
    assert "anatomy_test.csv, line 2" in dry(shell, mmlu, "--data.path", tmp_path)


# --- mistakes with folders ----------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_is_named(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = shell.run("--config", shell.tiny, "--output_dir", tmp_path / "file").complaint
    assert message.startswith(f"output.folder must be writable, {tmp_path / 'file'} is not")


def test_resume_of_a_folder_that_is_no_run_is_refused(shell: Shell, tmp_path: Path) -> None:
    assert f"{tmp_path} is not one" in shell.run("--resume", tmp_path).complaint


def test_resume_of_a_folder_that_cannot_be_written_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "phases").write_text("not a folder")
    assert f"{tmp_path} cannot" in shell.run("--resume", tmp_path).complaint


def test_a_folder_that_another_process_writes_is_left_alone(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY))
    with FileLock(tmp_path / ".lock"):
        message = shell.run("--resume", tmp_path).complaint
    assert message.startswith(f"{tmp_path} is being written by another process")
    assert not list((tmp_path / "phases").iterdir())


@pytest.mark.parametrize(("limit", "kept"), [(50_000, True), *([(500, False), (5_000, True)] if THOROUGH else [])])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    shell: Shell, tiny_run: Path, limit: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 bytes do not hold config.yaml, 5,000 no phase artifact, 50,000 not Trainer's resume files (torch gives no reason)."""
    remedy = "that files may be written there" if limit == 50_000 else "allow larger files (ulimit -f)"
    monkeypatch.setenv("LLM_FORGETTING_CACHE", str(shell.cache))
    synthetic_backbone(print)  # is there before the disk is full
    full = shell.run_tiny(file_limit=limit)
    folder = max((shell.folder / "outputs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert f"{folder} could not be written: " in full.complaint
    assert not list(folder.rglob(".*.json.*"))
    if not kept:
        assert full.complaint.endswith(f"{remedy}, then start again")
        return
    assert f"{remedy}, then " in full.complaint
    assert full.complaint.endswith(f"llm-forgetting run --resume {folder}")
    if limit == 50_000:
        assert shell.run("--resume", folder).status == 0
        assert same_results(read_results(folder), read_results(tiny_run))


# --- mistakes with models and training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model_name", "nobody/nothing"], ["model.name='nobody/nothing'", "hub cannot be reached", "local folder"]),
        (["--model.device", "abacus"], ["model.device='abacus' must be a device of this machine"]),
        (["--lora.target_modules", "foo"], ["lora.target_modules='foo'", "linear modules are", "q_proj"]),
        (["--training.optimizer", "adamw"], ["training.optimizer must be", "'adamw'", "adamw_torch"]),
        (["--training.lr_scheduler", "foo"], ["training.lr_scheduler must be", "'foo'", "linear"]),
        (
            ["--learning_rate", "1e30", "--training.max_grad_norm", "0"],
            ["training loss became", "lower training.learning_rate"],
        ),
    ],
)
def test_what_only_the_run_can_find_out_is_still_one_line(shell: Shell, arguments: list[str], words: list[str]) -> None:
    before = set(shell.folder.glob("outputs/*"))
    done = shell.run_tiny(*arguments)
    for word in words:
        assert word in done.complaint
    if "--learning_rate" in arguments:
        # Something was finished: it is kept, and the traceback is in the log.
        assert "Traceback" in (done.folder / "run.log").read_text()
    else:
        assert set(shell.folder.glob("outputs/*")) == before


def test_a_gated_model_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    from llm_forgetting.models.language.backbones import load_backbone

    def refuse(*args: object, **kwargs: object) -> Any:
        raise OSError("You are trying to access a gated repo.\n401 Client Error.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(
        UserError, match=r"model\.name='meta-llama/x' could not be loaded: it is gated.*hf auth login.*HF_TOKEN"
    ):
        load_backbone(ModelConfig(name="meta-llama/x"), lambda message: None)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_memory_that_runs_out_is_answered_with_what_to_lower(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llm_forgetting.cli.run import _run_in
    from llm_forgetting.config.sections import ExperimentConfig
    from llm_forgetting.experiment import experiment
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.report.terminal import Terminal

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "run_experiment", fail)
    with pytest.raises(UserError, match=r"memory ran out; lower training\.batch_size"):
        _run_in(RunFolder.create(tmp_path), ExperimentConfig(), Terminal())


def test_what_we_broke_ourselves_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llm_forgetting.cli.run import _run_in
    from llm_forgetting.config.sections import ExperimentConfig
    from llm_forgetting.experiment import experiment
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.report.terminal import Terminal

    def fail(*args: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(experiment, "run_experiment", fail)
    folder = RunFolder.create(tmp_path)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        _run_in(folder, ExperimentConfig(), Terminal())
    assert "a mistake of ours" in (folder.path / "run.log").read_text()


# --- dry run ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_configuration_sizes_time_and_memory_and_writes_nothing(shell: Shell) -> None:
    before = sorted(shell.folder.rglob("experiment_*"))
    done = shell.run("--config", "smoke", "--dry_run", "--output_dir", shell.folder / "never")
    assert done.status == 0
    assert not (shell.folder / "never").exists()
    assert sorted(shell.folder.rglob("experiment_*")) == before
    for words in ("num_epochs: 12", "Tasks", "Phases", "Memory", "fine-tune on synthetic_1 (36 steps)", "GB"):
        assert words in done.stdout
    assert re.search(r"synthetic_1 +48 +48 +\d+", done.stdout)
    # 15 + 8 on a plane, 13 + 8 on a path, 4 for each direction off the plane; 2 tasks of 32 items; the self-test passes six
    # times over 8.
    passes = 2 * (31 * 64 + 6 * 8)
    assert re.search(rf"landscape of 2 checkpoints \(31 points each or more\) +{passes:,} +\d+ s", done.stdout)
    assert re.search(rf"paths between them \(1 of 21 points or more\) +{21 * 64:,} +\d+ s", done.stdout)
    assert re.search(rf"plane through three of them \(26 points or more\) +{26 * 64:,} +\d+ s", done.stdout)
    assert re.search(rf"forecasts +{2 * 5 * 32} +\d+ s", done.stdout)
    assert "at most 120 each; counted are the fewest" in " ".join(done.stdout.split())


def test_a_dry_run_counts_what_will_be_scanned(shell: Shell) -> None:
    tasks = ["--tasks", "synthetic_1,synthetic_2,synthetic_3"]
    grid = ["--landscape.method", "grid", "--landscape.resolution", "7", "--landscape.directions", "5"]
    done = shell.run("--config", "smoke", "--dry_run", *tasks, *grid, "--landscape.trajectory", "true")
    assert done.status == 0, done.stderr
    for words in (
        f"landscape of 3 checkpoints ({7 * 7 + 3 * 4} points each)",
        "paths between them (2 of 21 points or more)",
        f"the training trajectory ({3 * 12} points)",
    ):
        assert words in done.stdout
    done = shell.run("--config", "smoke", "--dry_run", "--landscape.checkpoint_plane", "false")
    assert "plane through" not in done.stdout
    assert "the training trajectory" not in done.stdout


def test_a_dry_run_counts_what_interventions_cost(shell: Shell) -> None:
    """48 items and 12 epochs: SAM passes everything through twice, and 8 items of each earlier task join the others."""
    tasks = ["--tasks", "synthetic_1,synthetic_2,synthetic_3"]
    options = [
        "--interventions.replay_items",
        "8",
        "--interventions.sam_rho",
        "0.05",
        "--interventions.sam_on",
        "first",
    ]
    done = shell.run("--config", "smoke", "--dry_run", *tasks, *options)
    assert done.status == 0, done.stderr
    assert re.search(rf"fine-tune on synthetic_1 \(36 steps, SAM\) +{2 * 12 * 48:,} ", done.stdout)
    assert re.search(rf"fine-tune on synthetic_2 \(48 steps\) +{12 * (48 + 8)} ", done.stdout)
    assert re.search(rf"fine-tune on synthetic_3 \(48 steps\) +{12 * (48 + 16)} ", done.stdout)


def test_the_fewest_evaluations_are_what_a_run_at_least_takes(tiny_run: Path) -> None:
    """TINY's budget leaves no choice: exactly the fewest on the planes, no fewer on the path."""
    results = read_results(tiny_run)
    settings = LandscapeConfig(**results["config"]["landscape"])
    assert {landscape["evaluations"] for landscape in results["landscapes"].values()} == {evaluations(settings)}
    assert results["checkpoint_plane"]["fit"]["evaluations"] + 3 == plane_evaluations()
    (path,) = results["paths"]
    assert path_evaluations() <= path["evaluations"] <= settings.max_evaluations


def test_a_dry_run_of_a_gated_7b_model_needs_no_network_and_no_model(shell: Shell) -> None:
    done = shell.run("--config", "llama2-7b", "--dry_run")
    assert done.status == 0, done.stderr
    said = " ".join(done.stdout.split())
    for words in (
        "meta-llama/Llama-2-7b-hf",
        "32 layers of 4096, guessed from its name",
        "sizes assumed",
        "computer_science",
    ):
        assert words in said
    # Items as long as the preset allows; GB on this CPU and on 24, 40, 80 and 141 GB.
    assert re.search(r"\n training .* 24\.\d \(no\) +24\.\d +24\.\d +24\.\d", done.stdout)
    assert re.search(r"A100-40 +40 GB +yes +\d", done.stdout)
    assert re.search(r"RTX-4090 +24 GB +no: forecast", done.stdout)
    assert "A100-40" in said
    assert "set curvature.forecast=false" in said
    assert re.search(r"philosophy +240 +60", done.stdout)


def test_a_dry_run_says_what_another_gpu_would_take(shell: Shell) -> None:
    done = shell.run("--config", "smoke", "--dry_run", "--gpu", "h200")
    assert done.status == 0, done.stderr
    assert "Times on H200." in done.stdout
    assert re.search(r"phase +141 GB +24 GB +40 GB +80 GB +this CPU", done.stdout)
    for device in ("this CPU", "RTX-4090", "A100-40", "A100-80", "H100", "H200"):
        assert re.search(rf"{device} +\d+ GB +yes +(\d+ s|under 1 min)", done.stdout)
    complaint = shell.run("--config", "smoke", "--dry_run", "--gpu", "H1000").complaint
    assert complaint == "--gpu must be one of RTX-4090, A100-40, A100-80, H100, H200, was 'H1000'"
    assert "goes with --dry_run" in shell.run("--config", "smoke", "--gpu", "H100").complaint


def test_a_dry_run_on_the_hub_knows_the_subjects_without_it(shell: Shell) -> None:
    message = shell.run("--config", "llama2-7b", "--dry_run", "--task1", "philosofy").complaint
    assert "'philosofy' is not in this data source; nearest: philosophy" in message


def test_a_dry_run_of_a_model_of_unknown_size_says_so(shell: Shell, tmp_path: Path) -> None:
    done = shell.run("--dry_run", "--config", shell.tiny, "--model_name", tmp_path)
    assert done.status == 0, done.stderr
    assert "size is not known here" in done.stdout


# --- ending a run by hand ---------------------------------------------------------------------------------------------------


def test_control_c_says_how_to_go_on_and_going_on_works(shell: Shell, tiny_run: Path) -> None:
    stopped = shell.run_tiny(moment=Moment("training_step", count=3, signal=signal.SIGINT))
    assert stopped.status == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "stopped; nothing finished is lost" in stopped.stdout
    again = next(line for line in stopped.stdout.splitlines() if "--resume" in line)
    words = again.partition("llm-forgetting ")[2].split()
    assert words == ["run", "--resume", str(stopped.folder)]
    assert shell(*words).status == 0
    assert same_results(read_results(stopped.folder), read_results(tiny_run))


@pytest.mark.process
def test_a_reader_that_has_gone_is_no_traceback() -> None:
    command = f"{sys.executable} main.py --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr
