"""An experiment as an object: the command `llm-forgetting run`, with its results as values."""

import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from llm_forgetting.config.files import parse_config
from llm_forgetting.config.overrides import Config, resolve
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.logs import quiet_libraries
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.run_results import RunResults, open_run
from llm_forgetting.progress import Progress, Silent


class Experiment:
    """Fine-tune on each task in turn; measure after each what is forgotten and how the loss landscape looks.

    Args:
        config: A preset (`quickstart`, `full`, `skills`, `smoke`, `llama2-7b`), a YAML file, or an `ExperimentConfig`.
        tasks: Names of subjects or groups, in the order in which they are learnt.
        settings: What differs from `config`: sections with some of their fields (`lora={"rank": 16}`), dotted paths
            (`**{"lora.rank": 16}`), or `seed`, which stands for every seed.

    For example

        run = Experiment("smoke", training={"num_epochs": 2}).run()
        print(run.answer)
        run.scores  # a pandas frame
    """

    def __init__(self, config: Config = "quickstart", *, tasks: Sequence[str] | None = None, **settings: Any) -> None:
        self.config: ExperimentConfig = resolve(config, tasks, settings)

    def run(self, folder: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> RunResults:
        """Run it; what is finished is kept, whatever happens, and `Experiment.resume` goes on with it.

        Args:
            folder: Where `experiment_TIMESTAMP` is made; `output.folder`, if not given.
            quiet: Whether to show nothing.

        Returns:
            The results, read back from the run's folder.

        Raises:
            UserError: What the user can mend, in one line.
        """
        created = RunFolder.create(Path(self.config.output.folder if folder is None else folder))
        try:
            return _run(self.config, created, quiet)
        except UserError:
            created.remove_if_unused()
            raise

    def __repr__(self) -> str:
        """Tasks, model and adapter."""
        config = self.config
        tasks = shorten(", ".join(config.data.tasks), 150)
        trained = "all weights" if config.lora is None else f"LoRA rank {config.lora.rank}"
        return f"<Experiment on {tasks}: {config.model.name}, {trained}, into {config.output.folder}>"

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], *, quiet: bool = False) -> RunResults:
        """Go on with a run that was stopped, or that is finished (then its results are read back)."""
        path = Path(folder)
        return _run(parse_config(str(path / "config.yaml"), [], resumed=True), RunFolder.open(path), quiet)


def _run(config: ExperimentConfig, folder: RunFolder, quiet: bool) -> RunResults:
    quiet_libraries()
    from llm_forgetting.experiment.experiment import run_in
    from llm_forgetting.report.terminal import Terminal

    progress: Progress = Silent() if quiet else Terminal()
    if not quiet:
        progress.note(f"writing to {folder.path}; if it is stopped, Experiment.resume({str(folder.path)!r}) goes on")
    run_in(folder, config, progress)
    return open_run(folder.path)
