"""One experiment: the phases of the method, and what they write."""
