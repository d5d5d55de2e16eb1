"""Skills about numbers, measures and dates."""

import datetime

from numpy.random import Generator

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_UNITS = (
    ("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("kilograms", "grams", 1000), ("hours", "minutes", 60),
    ("days", "hours", 24), ("weeks", "days", 7), ("years", "months", 12), ("litres", "millilitres", 1000),
)  # fmt: skip
_ROMAN = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"),
    (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def _different(rng: Generator, count: int, most: int) -> list[int]:
    return [int(n) + 1 for n in rng.choice(most, size=count, replace=False)]


def largest(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """The largest of four numbers or more; shifted: numbers of one more digit."""
    shown = _different(rng, 3 + difficulty, 990 if shifted else 99)
    return f"Which number is the largest: {', '.join(map(str, shown))}?", str(max(shown))


def sorting(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """Numbers in order; shifted: one more."""
    shown = _different(rng, 2 + difficulty + shifted, 99)
    return f"Sort from small to large: {' '.join(map(str, shown))}", " ".join(map(str, sorted(shown)))


def arithmetic(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """A sum or a difference; shifted: larger numbers."""
    most = 10 * (1 + difficulty) * (2 if shifted else 1)
    a, b = sorted((int(n) for n in rng.integers(1, most, size=2)), reverse=True)
    return (f"{a} + {b} =", str(a + b)) if rng.integers(2) else (f"{a} - {b} =", str(a - b))


def sequence(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """The next number of an arithmetic sequence; shifted: it descends."""
    first, step = int(rng.integers(1, 40 * difficulty)), int(rng.integers(2, 9 * difficulty))
    shown = [first + n * step for n in range(5)]
    if shifted:
        shown.reverse()
        step = -step
        shown = [n + 60 for n in shown]
    return f"What comes next: {', '.join(map(str, shown[:4]))}?", str(shown[3] + step)


def counting(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """How often a letter stands in a row of letters; shifted: longer rows."""
    row = [("a", "b", "c")[n] for n in rng.integers(3, size=4 + 2 * difficulty + 3 * shifted)]
    return f"How many times is there an a in: {' '.join(row)}?", str(row.count("a"))


def roman(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """A number in Roman numerals; shifted: larger ones."""
    most = 300 * difficulty
    number = int(rng.integers(1, most)) + (most if shifted else 0)
    rest, written = number, ""
    for value, letters in _ROMAN:
        written += letters * (rest // value)
        rest %= value
    return f"Write {number} in Roman numerals.", written


def units(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """One unit in another; shifted: larger numbers."""
    large, small, factor = _UNITS[int(rng.integers(len(_UNITS)))]
    number = int(rng.integers(2, 50 * difficulty)) + (50 * difficulty if shifted else 0)
    return f"How many {small} are {number} {large}?", str(number * factor)


def weekday(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """The day some days after another; shifted: before it."""
    day, days = int(rng.integers(7)), int(rng.integers(1, 50 * difficulty))
    where = "before" if shifted else "after"
    return f"Which day is {days} days {where} {_DAYS[day]}?", _DAYS[(day + (-days if shifted else days)) % 7]


def dates(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """A date in numbers, some days later where the difficulty is above 1; shifted: years of another century."""
    start = datetime.date(1900 if shifted else 2000, 1, 1)
    day = start + datetime.timedelta(int(rng.integers(36_500)))
    later = int(rng.integers(1, 10 * difficulty)) if difficulty > 1 else 0
    asked = f"{day.day} {_MONTHS[day.month - 1]} {day.year}"
    found = (day + datetime.timedelta(later)).isoformat()
    return (
        f"Write as year-month-day: {later} days after {asked}" if later else f"Write as year-month-day: {asked}"
    ), found
