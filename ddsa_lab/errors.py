"""The one kind of error that a user can mend: a clear sentence, no traceback on the command line."""

from collections.abc import Iterable
from difflib import get_close_matches


class LabError(ValueError):
    """Wrong input that its user can correct.

    The message is one sentence that names the file or argument, what was found and what would do.
    The command line prints it and ends with exit code 2.
    """


def choose(what: str, value: str, valid: Iterable[str]) -> str:
    """Return `value` if it is one of `valid`.

    Args:
        what: what is being chosen, for the message ("preset", "layer", ...).
        value: the name given.
        valid: the names that exist.

    Raises:
        LabError: naming the nearest valid names first, then all of them (at most 12).
    """
    names = [str(name) for name in valid]
    if value in names:
        return value
    near = get_close_matches(str(value), names, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise LabError(f"unknown {what} {value!r}{hint}: choose one of {shown}")
