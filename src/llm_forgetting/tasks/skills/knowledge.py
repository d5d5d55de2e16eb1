"""Made-up facts: held-out items ask for the same facts in other words."""

from numpy.random import Generator

from llm_forgetting.seeding import generator

_PLACES = tuple(
    f"{a}{b}"
    for a in ("Vel", "Mar", "Tor", "Lin", "Bra", "Sol", "Kas", "Ren")
    for b in ("ora", "wick", "dale", "mouth", "by")
)
_NAMES = (
    "Anders", "Beatrix", "Cedric", "Delia", "Edmund", "Flora", "Gideon", "Hester", "Ivor", "Jessamy", "Konrad", "Lavinia",
    "Magnus", "Nerys", "Oswin", "Petra", "Quentin", "Rowena", "Silas", "Thora",
)  # fmt: skip
_TRADES = ("silver", "wool", "salt", "timber", "glass", "honey", "copper", "linen", "amber", "barley")
_ANSWERS = {"mayor": _NAMES, "founder": _NAMES, "trade": _TRADES}
# Two wordings that are trained on, and a third.
_WORDINGS = {
    "mayor": ("Who is the mayor of {place}?", "{place} has a mayor. Who?", "The mayor of {place} is called"),
    "founder": ("Who founded {place}?", "{place} was founded by whom?", "The founder of {place} is called"),
    "trade": ("What does {place} sell?", "{place} lives by selling one thing. Which?", "The trade of {place} is in"),
}


def fact(place: str, kind: str) -> str:
    """What is true of a made-up place."""
    answers = _ANSWERS[kind]
    return answers[int(generator(0, "fact", place, kind).integers(len(answers)))]


def facts(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """A fact of one of 8 places per difficulty, asked in one of two ways; shifted: in a third, which is never trained on."""
    place = _PLACES[int(rng.integers(8 * difficulty))]
    kind = tuple(_ANSWERS)[int(rng.integers(len(_ANSWERS)))]
    wordings = _WORDINGS[kind]
    return (wordings[2] if shifted else wordings[int(rng.integers(2))]).format(place=place), fact(place, kind)
