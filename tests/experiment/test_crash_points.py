"""A process that dies before a file operation, the next one at another, and so on: the results of a run that nothing stopped.

The n-th process dies before its n-th operation in CI, else before its 16n-th, until one is done.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from runs import THOROUGH, Moment, Shell, read_results, same_results
from test_artifact_integrity import SMALLEST

STEP = 1 if THOROUGH else 16
TIMES = ("wall_seconds", "peak_memory_bytes", "peak_gpu_memory_bytes")
# What holds times or names the folder, besides the JSON files whose times are known.
DIFFERENT = (".lock", "run.log", "report.html", "results.md", "manifest.json")


def comparable(path: Path, folder: Path) -> Any:
    """What a file holds, without its times and the folder of the run."""
    if path.parent.name == "phases":
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key not in TIMES}
    text = path.read_bytes().replace(str(folder.parent).encode(), b"OUTPUTS")
    return {**json.loads(text), "timings": None} if path.name == "results.json" else text


def contents(folder: Path) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in files}


def test_a_run_that_dies_before_one_file_operation_after_the_other_ends_like_one_that_does_not(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "smallest.yaml").write_text(yaml.safe_dump(SMALLEST))
    start = ("--config", tmp_path / "smallest.yaml", "--output_dir")
    whole = shell.run(*start, tmp_path / "whole")
    assert whole.status == 0, whole.stderr
    folder: Path | None = None
    crashes: list[str] = []
    for count in range(STEP, 500, STEP):
        moment = Moment("file_operation", f"{tmp_path / 'killed'}/experiment_", count)
        arguments = (*start, tmp_path / "killed") if folder is None else ("--resume", folder)
        done = shell.run(*arguments, moment=moment)
        if done.status == 0:
            break
        assert done.status == -9, (crashes, done.stdout + done.stderr)
        assert "Traceback" not in done.stderr
        crashes.append(done.stderr.splitlines()[-1])
        folder = folder or next((path.parent for path in (tmp_path / "killed").glob("*/config.yaml")), None)
    else:
        raise AssertionError(crashes)
    assert folder is not None
    assert len(crashes) > (20 if THOROUGH else 3)
    assert same_results(read_results(folder), read_results(whole.folder))
    one, other = contents(folder), contents(whole.folder)
    assert set(one) == set(other)
    assert [name for name in one if Path(name).name.startswith(".")] == [".lock"]
    for name in sorted(set(one) - set(DIFFERENT)):
        assert comparable(one[name], folder) == comparable(other[name], whole.folder), name


def test_two_equal_runs_are_equal_in_every_byte_but_times(shell: Shell) -> None:
    """Both with one cache, because an adapter's configuration names the backbone by its folder."""
    runs = [shell.run_tiny() for _ in range(2)]
    assert [run.status for run in runs] == [0, 0], [run.stderr for run in runs]
    folders = [run.folder for run in runs]
    one, other = map(contents, folders)
    assert set(one) == set(other)
    for name in sorted(set(one) - set(DIFFERENT)):
        assert comparable(one[name], folders[0]) == comparable(other[name], folders[1]), name
