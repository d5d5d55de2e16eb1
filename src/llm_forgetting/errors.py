"""The exceptions that are meant for the user's eyes."""


class UserError(Exception):
    """What the user can mend: one line that says what must hold, what was given, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class UnreachableError(UserError):
    """Data that only the network has, and the network did not give: what is asked for may still be right."""
