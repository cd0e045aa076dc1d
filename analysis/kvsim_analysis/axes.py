"""Axes that can be read: log budgets labelled 64, 128, ...; bytes in KiB; errors on a log scale where they span one."""

import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

_PERCENT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
X_LABELS = {
    "budget_tokens": "budget [tokens per KV head]",
    "resident_tokens": "resident tokens per KV head",
    "resident_bytes": "resident bytes per KV head",
    "fraction": "budget [share of the prompt]",
    "resident_union_bytes": "resident bytes per KV head, distinct",
}
# Errors at or under this are those of a whole cache (metrics.md: < 1e-6); a log axis does not stretch down to them.
EXACT = 1e-5
LOG_SPAN = 6.0


def tokens_text(value):
    """64, 1024, 16k."""
    value = int(round(value))
    return f"{value // 1024}k" if value >= 10000 and value % 1024 == 0 else str(value)


def bytes_text(value):
    """512 B, 64 KiB, 1.5 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def log_x(ax, name, low, high, room=2.5):
    """A log axis for budgets, tokens or bytes over [low, high]; `room` inches decide how many labels fit."""
    low, high = (low / 1.3, high * 1.3) if high <= low * 1.01 else (low / 1.06, high * 1.06)
    ax.set_xscale("log", base=2)
    ax.set_xlim(low, high)
    if name == "fraction":
        ticks, text, width = [t for t in _PERCENT if low <= t <= high], lambda v: f"{100 * v:g}%", 0.36
    else:
        text, width = (bytes_text, 0.56) if "bytes" in name else (tokens_text, 0.38)
        ticks = [2.0**e for e in range(int(np.ceil(np.log2(low))), int(np.floor(np.log2(high))) + 1)]
    ticks = _thin(ticks, max(2, int(room / width)))
    if len(ticks) < 2:
        ticks = sorted(
            {
                float(f"{v:.2g}") if name == "fraction" else float(round(v))
                for v in np.geomspace(low * 1.06, high / 1.06, 3)
            }
        )
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([text(t) for t in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(X_LABELS[name])


def _thin(ticks, most):
    """Every n-th tick, so that at most `most` stay; the last one always does."""
    step = -(-len(ticks) // most) if ticks else 1
    return ticks[::-1][::step][::-1]


def y_axis(ax, values, metric, allow_log=True, linear_too=()):
    """Scales the axis to `values`; a log scale for errors that span it. Returns True when it is a log scale.

    `linear_too` are values that a linear axis also has to show.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    positive = values[values > EXACT]
    log = allow_log and "error" in metric and len(positive) > 1 and positive.max() / positive.min() >= LOG_SPAN
    if log:
        low, high = positive.min() / 1.15, positive.max() * 1.15
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        ticks = _log_ticks(low, high)
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_major_formatter(FixedFormatter([_log_text(t) for t in ticks]))
        ax.yaxis.set_minor_formatter(NullFormatter())
        return True
    values = np.concatenate([values, [v for v in linear_too if np.isfinite(v)]])
    if len(values):
        low, high = values.min(), values.max()
        if "bytes" not in metric and low >= 0 and low < 0.35 * high:
            low = 0.0
        pad = 0.035 * ((high - low) or abs(high) or 1.0)
        ax.set_ylim(low - pad, high + pad)
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return False


def log_axis(axis, values):
    """A log scale over positive `values`, labelled at few round numbers."""
    low, high = np.min(values, initial=np.inf) / 1.25, np.max(values, initial=0.0) * 1.25
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    if low < high:
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
        axis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axis.set_major_formatter(lambda value, _: _log_text(value))
    axis.set_minor_formatter(NullFormatter())


def _log_text(value):
    """0.002 as it is, 0.0003 as 3 x 10^-4."""
    if value >= 0.001:
        return f"{value:g}"
    digit, exponent = f"{value:.0e}".split("e")
    return f"$\\mathdefault{{{'' if digit == '1' else digit + chr(92) + 'cdot '}10^{{{int(exponent)}}}}}$"


def _log_ticks(low, high):
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for parts in ((1,), (1, 3), (1, 2, 5)):
        ticks = [p * 10.0**d for d in decades for p in parts if low <= p * 10.0**d <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: -(-len(ticks) // 7)]
