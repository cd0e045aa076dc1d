"""The one exception for faults a user can mend, and the nearest-name hint its messages carry."""

import difflib


class UserError(RuntimeError):
    """Wrong use or unreadable input; the message is one line: what, where, what to do."""


class UndefinedMetric(UserError):
    """A metric that the run has, but without a value in any chosen row."""


def nearest(name, known):
    """The known name most like `name`, or None when nothing is similar."""
    lowered = {str(k).lower(): str(k) for k in known}
    found = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[found[0]] if found else None


def unknown(kind, name, known, limit=12):
    """A UserError for an unknown `name`: the nearest known one, else the list of them."""
    known = [str(k) for k in known]
    close = nearest(name, known)
    if close:
        hint = f"did you mean '{close}'?"
    elif known:
        hint = "there are: " + ", ".join(known[:limit]) + (", ..." if len(known) > limit else "")
    else:
        hint = "there are none"
    return UserError(f"no {kind} '{name}' here; {hint}")
