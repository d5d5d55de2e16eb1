"""Whether the Hugging Face hub can be reached; without it only what is in its cache is looked for, and not again and again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

# Seconds that the hub has for its first answer, and for which that answer is believed.
PATIENCE = 3.0
BELIEVED = 60.0


def hub_answers() -> bool:
    """Whether the hub says anything at all, whatever that is."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT, int(time.monotonic() / BELIEVED))


@lru_cache(maxsize=4)
def _answers(endpoint: str, period: int) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=PATIENCE)
    except Exception:  # what stands between here and there has many names
        return False
    return True


@contextmanager
def cached_where_unreachable() -> Iterator[None]:
    """Within the block a hub that does not answer is not asked: its libraries retry for half a minute otherwise."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not hub_answers():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
