"""The command line: `llm-forgetting COMMAND`."""

from llm_forgetting.cli.main import main, run_main

__all__ = ["main", "run_main"]
