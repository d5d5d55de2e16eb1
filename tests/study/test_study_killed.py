"""A study whose process group is killed, and that is gone on with."""

import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

from runs import THOROUGH
from small_study import file, study, table, uninterrupted

__all__ = ["file", "uninterrupted"]  # fixtures
KILLS = 10 if THOROUGH else 3


def test_a_study_killed_at_random_moments_ends_with_the_same_table(
    file: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    moments = random.Random(0)
    for _ in range(KILLS):
        process = study(file, tmp_path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(1.0, 10.0))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = study(file, tmp_path)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert table(tmp_path) == uninterrupted
    assert len(uninterrupted["cells"]) == 4
