"""Skills about words."""

from numpy.random import Generator

CATEGORIES = {
    "animal": "dog cat horse cow sheep goat pig mouse rabbit lion tiger bear wolf fox deer monkey camel snake frog duck",
    "fruit": "apple pear plum peach cherry grape lemon orange banana melon mango fig kiwi berry apricot lime date papaya",
    "tool": "hammer saw drill wrench axe shovel rake chisel pliers file knife screwdriver ladder spade broom brush",
    "colour": "red blue green yellow purple brown black white grey pink violet crimson turquoise beige scarlet",
    "clothing": "shirt coat hat glove sock shoe scarf dress skirt jacket boot belt sweater apron trousers vest",
    "vehicle": "car bus train truck boat plane bicycle tram ship van taxi tractor scooter ferry helicopter canoe",
    "body": "arm leg hand foot head knee elbow shoulder finger toe nose ear eye mouth neck chin",
    "furniture": "table chair bed sofa desk shelf bench stool cupboard wardrobe drawer couch armchair cabinet",
}
_BY_CATEGORY = {name: tuple(listed.split()) for name, listed in CATEGORIES.items()}
WORDS = tuple(word for listed in _BY_CATEGORY.values() for word in listed)
_SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "po", "ri", "su", "ta", "vo", "zi", "ka", "le", "mo")


def _some(rng: Generator, pool: tuple[str, ...], count: int) -> list[str]:
    return [pool[n] for n in rng.choice(len(pool), size=count, replace=False)]


def _half(pool: tuple[str, ...], shifted: bool) -> tuple[str, ...]:
    """Words for trained items, or others."""
    return pool[1::4] if shifted else tuple(word for n, word in enumerate(pool) if n % 4 != 1)


def odd_one_out(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """The one word of another category; shifted: all words are new."""
    of, other = _some(rng, tuple(_BY_CATEGORY), 2)
    shown = _some(rng, _half(_BY_CATEGORY[of], shifted), min(2 + difficulty, 3 if shifted else 7))
    (odd,) = _some(rng, _half(_BY_CATEGORY[other], shifted), 1)
    shown.insert(int(rng.integers(len(shown) + 1)), odd)
    return f"Which word does not belong with the others: {', '.join(shown)}?", odd


def alphabetical(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """The word that comes first in the alphabet; shifted: two more words."""
    shown = _some(rng, WORDS, 2 + difficulty + 2 * shifted)
    return f"Which word comes first in the alphabet: {', '.join(shown)}?", min(shown)


def reverse(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """A made-up word backwards, of as many syllables as the difficulty and one; shifted: one more."""
    word = "".join(_SYLLABLES[n] for n in rng.integers(len(_SYLLABLES), size=1 + difficulty + shifted))
    return f"Write the word backwards: {word}", word[::-1]


def last_letters(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """The last letters of some words; shifted: one word more."""
    shown = _some(rng, WORDS, 1 + difficulty + shifted)
    return f"Write the last letter of each word: {' '.join(shown)}", " ".join(word[-1] for word in shown)


def capitals(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """Words in capital letters; shifted: other words."""
    shown = _some(rng, _half(WORDS, shifted), 1 + difficulty)
    return f"Write in capital letters: {' '.join(shown)}", " ".join(shown).upper()


def plural(rng: Generator, difficulty: int, shifted: bool) -> tuple[str, str]:
    """The plural of a made-up noun in a made-up grammar: -en after a vowel that is a or o, else -ul; shifted: longer nouns."""
    noun = "".join(_SYLLABLES[n] for n in rng.integers(len(_SYLLABLES), size=1 + difficulty + shifted))
    return f"In Zelin one says one {noun}, two", noun + ("nen" if noun[-1] in "ao" else "mul")
