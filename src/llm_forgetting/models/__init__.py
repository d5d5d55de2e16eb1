"""Models that are moved, scored and differentiated."""

import logging

# It tells of a package that could be installed as well, and of every 8-bit layer that it rounds activations.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
