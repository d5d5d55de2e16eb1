"""MMLU's subjects, subcategories and categories, and the names a task can be asked for by.

Source: Hendrycks et al., "Measuring Massive Multitask Language Understanding", ICLR 2021, and `categories.py` of its
repository; the names of groups are written with underscores.
"""

import difflib
import re
from collections.abc import Collection, Sequence

from llm_forgetting.errors import UserError

# subject: (subcategory, validation rows, test rows), as published
_PUBLISHED: dict[str, tuple[str, int, int]] = {
    "abstract_algebra": ("math", 11, 100),
    "anatomy": ("health", 14, 135),
    "astronomy": ("physics", 16, 152),
    "business_ethics": ("business", 11, 100),
    "clinical_knowledge": ("health", 29, 265),
    "college_biology": ("biology", 16, 144),
    "college_chemistry": ("chemistry", 8, 100),
    "college_computer_science": ("computer_science", 11, 100),
    "college_mathematics": ("math", 11, 100),
    "college_medicine": ("health", 22, 173),
    "college_physics": ("physics", 11, 102),
    "computer_security": ("computer_science", 11, 100),
    "conceptual_physics": ("physics", 26, 235),
    "econometrics": ("economics", 12, 114),
    "electrical_engineering": ("engineering", 16, 145),
    "elementary_mathematics": ("math", 41, 378),
    "formal_logic": ("philosophy", 14, 126),
    "global_facts": ("other", 10, 100),
    "high_school_biology": ("biology", 32, 310),
    "high_school_chemistry": ("chemistry", 22, 203),
    "high_school_computer_science": ("computer_science", 9, 100),
    "high_school_european_history": ("history", 18, 165),
    "high_school_geography": ("geography", 22, 198),
    "high_school_government_and_politics": ("politics", 21, 193),
    "high_school_macroeconomics": ("economics", 43, 390),
    "high_school_mathematics": ("math", 29, 270),
    "high_school_microeconomics": ("economics", 26, 238),
    "high_school_physics": ("physics", 17, 151),
    "high_school_psychology": ("psychology", 60, 545),
    "high_school_statistics": ("math", 23, 216),
    "high_school_us_history": ("history", 22, 204),
    "high_school_world_history": ("history", 26, 237),
    "human_aging": ("health", 23, 223),
    "human_sexuality": ("culture", 12, 131),
    "international_law": ("law", 13, 121),
    "jurisprudence": ("law", 11, 108),
    "logical_fallacies": ("philosophy", 18, 163),
    "machine_learning": ("computer_science", 11, 112),
    "management": ("business", 11, 103),
    "marketing": ("business", 25, 234),
    "medical_genetics": ("health", 11, 100),
    "miscellaneous": ("other", 86, 783),
    "moral_disputes": ("philosophy", 38, 346),
    "moral_scenarios": ("philosophy", 100, 895),
    "nutrition": ("health", 33, 306),
    "philosophy": ("philosophy", 34, 311),
    "prehistory": ("history", 35, 324),
    "professional_accounting": ("other", 31, 282),
    "professional_law": ("law", 170, 1534),
    "professional_medicine": ("health", 31, 272),
    "professional_psychology": ("psychology", 69, 612),
    "public_relations": ("politics", 12, 110),
    "security_studies": ("politics", 27, 245),
    "sociology": ("culture", 22, 201),
    "us_foreign_policy": ("politics", 11, 100),
    "virology": ("health", 18, 166),
    "world_religions": ("philosophy", 19, 171),
}

SUBCATEGORY: dict[str, str] = {subject: row[0] for subject, row in _PUBLISHED.items()}
ROWS: dict[str, int] = {subject: row[1] + row[2] for subject, row in _PUBLISHED.items()}
CATEGORIES: dict[str, tuple[str, ...]] = {
    "stem": ("physics", "chemistry", "biology", "computer_science", "math", "engineering"),
    "humanities": ("history", "philosophy", "law"),
    "social_sciences": ("politics", "culture", "economics", "geography", "psychology"),
    "other": ("other", "business", "health"),
}

TaskSubjects = tuple[str, tuple[str, ...]]


def spelled(name: str) -> str:
    """The one spelling of a name: lower case, underscores for spaces, hyphens and slashes."""
    return re.sub(r"[\s\-_/]+", "_", name.strip()).casefold()


def _subcategory(name: str, available: Collection[str]) -> tuple[str, ...]:
    return tuple(subject for subject, sub in SUBCATEGORY.items() if sub == name and subject in available)


def _category(name: str, available: Collection[str]) -> tuple[str, ...]:
    subcategories = CATEGORIES.get(name, ())
    return tuple(subject for subject, sub in SUBCATEGORY.items() if sub in subcategories and subject in available)


def groups(available: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Every group with a subject among `available`, by its unambiguous name, with those of its subjects.

    A subcategory whose name is also a subject's is `group:NAME` (`group:philosophy`); a category whose name is also a
    subcategory's or a subject's is `category:NAME` (`category:other`; plain `other` is the subcategory).
    """
    by_name: dict[str, tuple[str, ...]] = {}
    subcategories = dict.fromkeys(SUBCATEGORY.values())
    for name in subcategories:
        by_name[f"group:{name}" if name in available else name] = _subcategory(name, available)
    for name in CATEGORIES:
        taken = name in available or name in subcategories
        by_name[f"category:{name}" if taken else name] = _category(name, available)
    return {name: subjects for name, subjects in by_name.items() if subjects}


def resolve_task(name: str, available: Collection[str]) -> TaskSubjects:
    """The unambiguous name of task `name`, and its subjects among `available` (a source's own subjects).

    A subject wins over a group of the same name, a subcategory over a category; `group:NAME` and `category:NAME` force
    them. Case is ignored, and spaces and hyphens are underscores. `UserError` if `available` has no such task.
    """
    kind, _, rest = name.rpartition(":")
    kind, key = spelled(kind), spelled(rest)
    for subject in available:
        if spelled(subject) == spelled(name):
            return subject, (subject,)
    offered = groups(available)
    prefixes = {"": ("", "group:", "category:"), "group": ("group:", ""), "category": ("category:", "")}.get(kind, ())
    for prefix in prefixes:
        subjects = offered.get(prefix + key)
        if subjects and not (kind == "category" and key not in CATEGORIES):
            return prefix + key, subjects
    near = difflib.get_close_matches(key, [*available, *offered], n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"it has {', '.join([*available][:4])} and more"
    raise UserError(
        f"task {name!r} is not in this data source; {hint}; `llm-forgetting tasks --source ...` lists all of them"
    )


def resolve_tasks(names: Sequence[str], available: Collection[str]) -> list[TaskSubjects]:
    """`resolve_task` for tasks that must be disjoint; UserError for a task twice, or a subject in two of them."""
    resolved: list[TaskSubjects] = []
    for name in names:
        task, subjects = resolve_task(name, available)
        for earlier, earlier_subjects in resolved:
            if task == earlier:
                raise UserError(f"task {task} is named twice; forgetting needs different tasks")
            shared = [subject for subject in subjects if subject in earlier_subjects]
            if shared:
                raise UserError(
                    f"tasks {earlier} and {task} share {', '.join(shared)}: their items would be in both; "
                    f"choose tasks without a common subject"
                )
        resolved.append((task, subjects))
    return resolved
