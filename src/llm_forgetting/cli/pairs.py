"""`llm-forgetting forecast A B`: what the landscape at one checkpoint forecasts of another."""

import argparse
import shlex
import shutil
from pathlib import Path

from llm_forgetting.cli.adapters import SHORT_FLAGS, draw_page, no_tasks
from llm_forgetting.cli.parser import Parser, leading_words, parse_dotted
from llm_forgetting.cli.signals import stopped
from llm_forgetting.config.files import parse_forecast
from llm_forgetting.config.sections import ForecastConfig
from llm_forgetting.errors import UserError, program
from llm_forgetting.experiment.artifacts.logs import log_file, quiet_libraries
from llm_forgetting.progress import say


def forecast(arguments: list[str]) -> int:
    """`llm-forgetting forecast`: slope and curvature at A towards B, beside what was observed there."""
    options, config = parse_pair_forecast(arguments)
    quiet_libraries()
    from llm_forgetting.experiment.adapter_forecast import forecast_pair
    from llm_forgetting.experiment.adapter_landscape import refuse_other_scan
    from llm_forgetting.experiment.artifacts.run_folder import RunFolder
    from llm_forgetting.experiment.pairs import checkpoint_named, require_pair
    from llm_forgetting.files import encode
    from llm_forgetting.report.tables.pairs import pair_forecast_table
    from llm_forgetting.report.terminal import Terminal

    terminal, (first, second) = Terminal(), map(checkpoint_named, options.pair)
    require_pair((first, second), config.model)  # looked at before anything is written
    if options.resume:
        folder = RunFolder(Path(options.resume))
        if not folder.phases.is_dir():
            raise UserError(f"--resume needs the folder of an earlier forecast, {options.resume} is not one")
        refuse_other_scan(config, (first, second), folder)
    else:
        folder = RunFolder.create(Path(config.output.folder), prefix="forecast")
    with folder.locked(), log_file(folder.path / "run.log"):
        say(f"writing to {folder.path}")
        try:
            results = forecast_pair(config, (first, second), folder, terminal)
        except KeyboardInterrupt as stop:
            resume = [] if options.resume else ["--resume", str(folder.path)]
            again = f"{program()} forecast {shlex.join([*arguments, *resume])}"
            return stopped(stop, f"no finished task is lost. Go on with: {again}")
        except UserError:
            if not any(folder.phases.iterdir()):
                shutil.rmtree(folder.path, ignore_errors=True)  # a mistyped name leaves nothing behind
            raise
        folder.write("forecast.json", encode(results))
        page = draw_page(folder.path, "forecast.json", terminal)
    terminal.show_table(pair_forecast_table(results))
    say(f"Everything is in {folder.path}: {page}forecast.json.")
    return 0


def parse_pair_forecast(arguments: list[str]) -> tuple[argparse.Namespace, ForecastConfig]:
    """The options of `forecast` and the configuration they resolve to."""
    parser = Parser(
        "llm-forgetting forecast",
        add_help=False,
        usage="llm-forgetting forecast A B --task NAME [--task NAME ...] [--DOTTED.PATH VALUE ...]",
        description="What slope and curvature of the loss at checkpoint A forecast of the loss at checkpoint B, beside what is "
        "observed there. A and B are saved adapters on one backbone, of any ranks; `base` is the bare backbone.",
    )
    named = leading_words(arguments)
    main_options = parser.add_argument_group("main options")
    main_options.add_argument("-h", "--help", action="store_true", help="show this help and stop")
    main_options.add_argument("--task", action="append", default=[], metavar="NAME", help="see `llm-forgetting tasks`")
    main_options.add_argument(
        "--resume", metavar="DIR", help="go on with a forecast that was stopped, options as before"
    )
    main_options.add_argument("--model_name", metavar="NAME", help="model.name; default: what the adapters name")
    main_options.add_argument("--output_dir", metavar="DIR", help="output.folder")
    main_options.add_argument("--seed", metavar="N", help="data.seed and landscape.seed")
    seeds = ("data.seed", "landscape.seed")
    options, dotted = parse_dotted(parser, arguments[len(named) :], {**SHORT_FLAGS, "--seed": seeds}, ForecastConfig)
    if len(named) != 2:
        raise UserError(
            f"forecast needs two checkpoints before its options, A and B, {len(named)} given (see llm-forgetting forecast "
            f"--help)"
        )
    options.pair = named
    return options, parse_forecast(dotted, options.task or no_tasks(dotted))
