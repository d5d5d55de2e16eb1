"""Captions of pictures: what a picture shows, the facts behind it, and what must not be overlooked."""

from dataclasses import dataclass

# Written for a space at which a line is not to be broken.
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Caption:
    """Caption above a panel: heading, facts, alarms; `above` is the air between it and the panel, in points."""

    heading: str
    facts: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    above: float = 4.0

    @property
    def plain_facts(self) -> tuple[str, ...]:
        """Facts with ordinary spaces, for pages that break lines by themselves."""
        return tuple(map(breakable, self.facts))


def together(text: str) -> str:
    """`text`, not to be broken into lines where that can be helped."""
    return text.replace(" ", NO_BREAK)


def breakable(text: str) -> str:
    """`text` with ordinary spaces."""
    return text.replace(NO_BREAK, " ")


def space_alarms(space: str) -> tuple[str, ...]:
    """Alarm on every picture of a space whose landscapes another gauge of the same adapter would change."""
    return (f"not comparable: {together('raw coordinates')}",) if space == "raw" else ()


def step_unit(space: str) -> str:
    """Unit of a distance in a direction space, in words."""
    words = {"adapter": "the adapter's norm", "weight": "the weights' norm", "raw": "the raw factors' norm"}
    return f"units of {words[space]}"
