"""Table of an evaluation on whole test splits."""

from llm_forgetting.report.tables.run import Table, number, value_and_error
from llm_forgetting.results import EvaluationResults


def evaluation_table(results: EvaluationResults) -> Table:
    """A row per subject, and one for every group of several."""
    rows = []
    for task in results.tasks:
        for subject in task.subjects:
            rows.append(
                (
                    subject.name.replace("_", " "),
                    str(subject.n),
                    _accuracy(subject.accuracy.value, subject.accuracy.stderr),
                    value_and_error(subject.loss.value, subject.loss.stderr),
                    number(subject.letter_mass),
                )
            )
        if len(task.subjects) > 1:
            name = f"{task.name.replace('_', ' ')}, all"
            rows.append((name, str(task.accuracy.n), _accuracy(task.accuracy.value, task.accuracy.stderr), "", ""))
    shortened = sum(subject.shortened for task in results.tasks for subject in task.subjects)
    note = (
        f"{results.config.data.few_shot}-shot; accuracy ± standard error sd / sqrt(n), groups weighted by size, as in "
        "lm-evaluation-harness 0.4.13; letter mass: probability of the option letters together."
    )
    if shortened:
        note += f" {shortened} prompts were shortened to data.max_tokens."
    return Table("Test accuracy", ("subject", "items", "accuracy", "loss (nats)", "letter mass"), tuple(rows), note)


def _accuracy(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")
