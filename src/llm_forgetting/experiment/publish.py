"""Publication of a run: its results as one record, and everything that is written and drawn of it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.curvature.records import ForecastPhase, SpectrumRecord
from llm_forgetting.experiment import guards
from llm_forgetting.experiment.analysis.forecast import compare_with_rival_predictors
from llm_forgetting.experiment.artifacts import provenance
from llm_forgetting.experiment.artifacts.phase_artifacts import TRACKED
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.artifacts.trackers import track
from llm_forgetting.files import encode_lines
from llm_forgetting.forgetting.records import ForgettingSummary, Line
from llm_forgetting.landscape.between_records import BetweenCheckpoints
from llm_forgetting.landscape.records import CheckpointLandscape, LandscapeChange
from llm_forgetting.progress import Progress
from llm_forgetting.report.figures.run import draw_landscapes
from llm_forgetting.report.html.files import write_run_report
from llm_forgetting.report.model_card import write_cards
from llm_forgetting.report.tables.markdown import results_markdown
from llm_forgetting.results import Results, RunSetup, Timing, TrainingRecord

log = logging.getLogger(__name__)


def assemble(
    config: ExperimentConfig,
    setup: RunSetup,
    *,
    training: Sequence[TrainingRecord],
    summary: ForgettingSummary,
    landscapes: Mapping[str, CheckpointLandscape],
    changes: tuple[LandscapeChange, ...],
    between: BetweenCheckpoints,
    spectra: Mapping[str, SpectrumRecord],
    forecasts: Sequence[ForecastPhase],
    timings: Mapping[str, Timing],
) -> Results:
    """What results.json holds, from the results of the phases; figures are not drawn yet."""
    surfaces = {name: provenance.surfaces_alone(landscape) for name, landscape in landscapes.items()}
    profiles = provenance.profiles_alone(between)
    return Results(
        schema_version=provenance.SCHEMA_VERSION,
        answer=summary.answer,
        config=config,
        versions=provenance.versions(setup.model.quantization),
        environment=provenance.environment(),
        **{**vars(setup), "warnings": (*setup.warnings, *_late_warnings(setup, summary, surfaces))},
        training=tuple(training),
        forgetting=summary.forgetting,
        spurious=summary.spurious,
        text=summary.text,
        landscapes=surfaces,
        landscape_comparison=changes,
        **vars(profiles),
        curvature=dict(spectra),
        forecasts=compare_with_rival_predictors(forecasts, spectra),
        figures=(),
        timings=dict(timings),
        quantised=summary.quantised,
        probes=summary.probes,
    )


def publish(results: Results, lines: Sequence[Line], folder: RunFolder, progress: Progress) -> Results:
    """Write items.jsonl, results.json, figures, results.md, model cards and report.html; tell the trackers.

    No drawing and no server may lose a run: what is written after results.json ends in a warning where it fails.
    """
    output = results.config.output
    folder.write("items.jsonl", encode_lines(lines))
    folder.write_record("results.json", results)
    if output.figures:
        drawn: list[str] = []
        _extra("figures", lambda: drawn.extend(draw_landscapes(results, folder.path, dpi=output.dpi)), progress)
        results = replace(results, figures=tuple(drawn))
        folder.write_record("results.json", results)
    _extra("results.md", lambda: folder.write("results.md", results_markdown(results, lines)), progress)
    _extra("model cards", lambda: write_cards(results, folder.path), progress)
    if output.figures:
        _extra("report.html", lambda: write_run_report(results, lines, folder.path), progress)
    if output.trackers:
        tell = lambda: tuple(track(results, output.trackers, folder.path))  # noqa: E731
        _extra(f"what {', '.join(output.trackers)} keeps", lambda: folder.once(TRACKED, tell), progress)
    return results


def _extra(what: str, write: Callable[[], object], progress: Progress) -> None:
    try:
        write()
    except Exception as error:
        log.exception("%s could not be written", what)
        progress.warn(f"{what} could not be written ({error!r}); all numbers are in results.json")


def _late_warnings(
    setup: RunSetup, summary: ForgettingSummary, landscapes: Mapping[str, CheckpointLandscape]
) -> Iterator[str]:
    """What only the measured numbers can show."""
    for j, (name, masses) in enumerate(zip(setup.task_names, summary.forgetting.train.letter_mass[1:], strict=True)):
        if setup.tasks[j].prompt and not masses[j] >= guards.LETTER_MASS_WARNING:
            yield (
                f"after training on {name} the model gives the option letters only {masses[j]:.2f} of its probability on "
                f"{name}: the answer token is probably wrong, or far too little was learnt"
            )
    for name, landscape in landscapes.items():
        test = landscape.gauge_self_test
        if test is not None and not test.passed:
            yield (
                f"gauge self-test of {name} failed: the same adapter in another gauge differs by "
                f"{test.value_relative_difference:.1e} in value; do not compare this landscape's numbers"
            )
        for task, surface in landscape.surfaces.items():
            if surface.metrics.flat:
                yield (
                    f"the {task} surface of {name} is flat: the adapter learnt (nearly) nothing, which is not a wide minimum"
                )
