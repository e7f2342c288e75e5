"""Mistakes a user can mend: one clear line each, exit code 2, never a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """What was read, what was expected, and what to do, in one sentence."""


def nearest(name: str, options: Iterable[str], *, limit: int = 3) -> str:
    """The right names closest to a wrong one, as the end of an error's sentence.

    >>> nearest("smal", ["tiny", "small", "base"])
    'did you mean small?'
    >>> nearest("qqq", ["tiny", "small"])
    'choose from: tiny, small'
    """
    known = list(options)
    close = get_close_matches(name, known, n=limit, cutoff=0.55)
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"choose from: {shown}"
