"""`python main.py --task1 computer_science --task2 philosophy`: the main job, also from a checkout without installing."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from llm_forgetting.cli import run_main

if __name__ == "__main__":
    raise SystemExit(run_main())
