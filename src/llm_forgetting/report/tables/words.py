"""What the share of right answers is called: accuracy of questions, exact match of completions."""

from collections.abc import Collection, Mapping

from llm_forgetting.landscape.between_records import PathProfile
from llm_forgetting.results import EvaluationResults, Results

ACCURACY, EXACT_MATCH = "accuracy", "exact match"
WHEN_RIGHT: Mapping[str, str] = {
    "teacher_forcing": (
        "A completion is right if every token is the likeliest after the right ones before it: teacher-forced exact match."
    ),
    "generation": (
        "A completion is right if the answer in what the model writes by greedy decoding is the right one: exact match of "
        "generated answers."
    ),
    "likelihood": "An option is chosen by the log-likelihood of its text after the prompt: acc of lm-evaluation-harness.",
    "likelihood_per_character": (
        "An option is chosen by the log-likelihood of its text after the prompt over its characters: acc_norm of "
        "lm-evaluation-harness."
    ),
}
"""When a completion counts as right, by how its task is scored."""


def completion_tasks(results: Results) -> list[str]:
    """The tasks of prompts with completions, but for those that are judged among options."""
    return [task.name for task in results.tasks if task.completions and not (task.score and task.score.of_options)]


def measure_name(results: Results) -> str:
    """`exact match` where every task is of completions, else `accuracy`."""
    return named(0 < len(completion_tasks(results)) == len(results.tasks))


def evaluated_name(results: EvaluationResults) -> str:
    """`exact match` where that is what every task's accuracy is, else `accuracy`."""
    return named(all(task.is_exact_match for task in results.tasks))


def profiled_name(profiles: Collection[PathProfile]) -> str:
    """`exact match` where every profile is of completions, whose tokens have no alternative, so no loss among such."""
    return named(not any(profile.four_way_loss.any() for profile in profiles))


def named(completions: object) -> str:
    """`exact match` of completions, `accuracy` of questions."""
    return EXACT_MATCH if completions else ACCURACY


def capital(text: str) -> str:
    """`text` with a capital."""
    return text[:1].upper() + text[1:]
