"""What the share of right answers is called: accuracy of questions, exact match of completions."""

from collections.abc import Collection

from llm_forgetting.landscape.records import PathProfile
from llm_forgetting.results import EvaluationResults, Results

ACCURACY, EXACT_MATCH = "accuracy", "exact match"


def completion_tasks(results: Results) -> list[str]:
    """The tasks of prompts with completions: they have no options."""
    return [task.name for task in results.tasks if task.completions]


def measure_name(results: Results) -> str:
    """`exact match` where every task is of completions, else `accuracy`."""
    return named(len(completion_tasks(results)) == len(results.tasks))


def evaluated_name(results: EvaluationResults) -> str:
    """`exact match` where every subject is of completions, else `accuracy`."""
    return named(all(subject.completions for task in results.tasks for subject in task.subjects))


def profiled_name(profiles: Collection[PathProfile]) -> str:
    """`exact match` where every profile is of completions, whose tokens have no alternative, so no loss among such."""
    return named(not any(profile.four_way_loss.any() for profile in profiles))


def named(completions: object) -> str:
    """`exact match` of completions, `accuracy` of questions."""
    return EXACT_MATCH if completions else ACCURACY


def capital(text: str) -> str:
    """`text` with a capital."""
    return text[:1].upper() + text[1:]
