"""Named random streams, all derived from one integer seed.

Every consumer of randomness names its purpose, so that adding one never shifts another.
"""

import hashlib

import numpy as np


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for the stream `purpose` of `seed`.

    The first eight bytes (big-endian, shifted right by one bit) of SHA-256 over ``"seed/purpose1/purpose2/..."`` in UTF-8;
    stated so that another program can draw the same numbers.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A numpy generator for the stream `purpose` of `seed`."""
    return np.random.default_rng(derive_seed(seed, *purpose))
