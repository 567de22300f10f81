"""The error that is the user's to mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, what was given, what is wanted.

    The command line prints it without a traceback and ends with exit code 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that proposes the closest known name, with a space before it; or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_line(text: object) -> str:
    """A message without its line breaks."""
    return " ".join(str(text).split())
