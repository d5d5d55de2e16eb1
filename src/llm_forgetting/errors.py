"""The exceptions that are meant for the user's eyes, and one that only the system can explain."""


class UserError(Exception):
    """What the user can mend: one line that says what must hold, what was given, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class UnreachableError(UserError):
    """Data that only the network has, and the network did not give: what is asked for may still be right."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        phrase in said for phrase in ("out of memory", "can't allocate memory", "not enough memory")
    )
