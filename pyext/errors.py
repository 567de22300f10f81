"""The error that is the user's to mend."""


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, what was given, what is wanted.

    The command line prints it without a traceback and ends with exit code 2.
    """
