"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """What the user can mend: one line that says what must hold, what was given, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
