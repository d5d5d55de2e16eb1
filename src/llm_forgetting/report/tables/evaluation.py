"""Table of an evaluation on whole test splits."""

from llm_forgetting.forgetting.evaluation import PooledAccuracy
from llm_forgetting.forgetting.intervals import Proportion
from llm_forgetting.report.tables.run import Table, number, value_and_error
from llm_forgetting.report.tables.words import EXACT_MATCH, capital, evaluated_name
from llm_forgetting.results import EvaluationResults


def evaluation_table(results: EvaluationResults) -> Table:
    """A row per subject, and one for every group of several; trained rows apart where the adapter was trained on some."""
    split = any(task.trained for task in results.tasks)
    rows, name = [], evaluated_name(results)
    alone = name == EXACT_MATCH
    for task in results.tasks:
        for subject in task.subjects:
            held_out = subject.held_out if subject.trained else subject.accuracy
            apart = (_of(subject.trained), _of(held_out)) if split else ()
            rows.append(
                (
                    subject.name.replace("_", " "),
                    str(subject.n),
                    _accuracy(subject.accuracy.value, subject.accuracy.stderr),
                    *apart,
                    value_and_error(subject.loss.value, subject.loss.stderr),
                    *([] if alone else ["" if subject.completions else number(subject.letter_mass)]),
                )
            )
        if len(task.subjects) > 1:
            label = f"{task.name.replace('_', ' ')}, all"
            apart = (_of(task.trained), _of(task.held_out if task.trained else task.accuracy)) if split else ()
            accuracy = _accuracy(task.accuracy.value, task.accuracy.stderr)
            rows.append((label, str(task.accuracy.n), accuracy, *apart, "", *([] if alone else [""])))
    shortened = sum(subject.shortened for task in results.tasks for subject in task.subjects)
    note = (
        f"{results.config.data.few_shot}-shot; {name} ± standard error sd / sqrt(n), groups weighted by size, as in "
        f"lm-evaluation-harness 0.4.13{'' if alone else '; letter mass: probability of the option letters together'}."
    )
    is_ = "" if alone else "accuracy is "
    note += "".join(f" {task}: {is_}{what}." for task, what in _measures(results).items())
    if split:
        note += " Trained: items that this adapter was trained on; only the held-out ones test it. Loss"
        note += f"{'' if alone else ' and letter mass'}: all."
    if shortened:
        note += f" {shortened} prompts were shortened to data.max_tokens."
    columns = ("all", "trained", "held-out") if split else (name,)
    header = ("subject", "items", *columns, "loss (nats)", *([] if alone else ["letter mass"]))
    return Table(capital("test " * results.is_test + name), header, tuple(rows), note)


def _measures(results: EvaluationResults) -> dict[str, str]:
    """What the accuracy of each task of completions is, and the mean ROUGE-L where that was measured."""
    said = {}
    for task in results.tasks:
        if task.measure is not None:
            found = [(subject.rouge_l, subject.n) for subject in task.subjects if subject.rouge_l is not None]
            mean = sum(value * n for value, n in found) / sum(n for _, n in found) if found else None
            rouge = "" if mean is None else f"; ROUGE-L {mean:.4f}"
            said[task.name.replace("_", " ")] = f"{task.measure}{rouge}"
    return said


def _of(accuracy: Proportion | PooledAccuracy | None) -> str:
    """An accuracy with its number of items."""
    return "none" if accuracy is None else f"{_accuracy(accuracy.value, accuracy.stderr)} of {accuracy.n}"


def _accuracy(value: float, stderr: float | None) -> str:
    return f"{value:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")
