"""Builds pandas frames from results columns; the only module that needs pandas."""

import numpy as np

from .errors import UserError

LOOKUPS = {"trace": "trace_names", "policy": "policy_names", "variant": "specs", "budget_request": "budgets"}
_FIRST = (
    "trace",
    "policy",
    "variant",
    "layer",
    "kv_head",
    "budget_request",
    "budget_tokens",
    "resident_tokens",
    "peak_tokens",
    "evicted",
    "clamped",
    "near_ties",
)


def _pandas():
    try:
        import pandas
    except ImportError:
        raise UserError(
            "this needs pandas: pip install pandas (or read NumPy columns with .column(table, name))"
        ) from None
    return pandas


def frame(columns):
    """A frame of a dict of columns."""
    return _pandas().DataFrame({k: _flags(k, v) for k, v in columns.items()})


def _flags(name, values):
    return np.asarray(values, bool) if name in ("nested", "oracle", "automatic", "clamped") else values


def _named(pandas, results, name, codes):
    categories = [str(c) for c in getattr(results, LOOKUPS[name])]
    if len(set(categories)) == len(categories):
        return pandas.Categorical.from_codes(np.asarray(codes, np.int64), categories)
    return np.asarray(categories, object)[codes]


def table(results, name):
    """The table "rows", "summary" or "layers" with names for indices; leading columns in the CSV's order."""
    pandas = _pandas()
    present = results.column_names[name]
    metrics = {m: i for i, m in enumerate(results.metric_names)}
    rank = {c: i for i, c in enumerate(_FIRST)}

    def order(column):
        if column in rank:
            return (0, rank[column], 0)
        owner = max((m for m in metrics if column == m or column.startswith(m + "_")), key=len, default=None)
        return (1, metrics.get(owner, len(metrics)), present.index(column))

    data = {}
    for column in sorted(present, key=order):
        values = results.column(name, column)
        data[column] = _named(pandas, results, column, values) if column in LOOKUPS else _flags(column, values)
    return pandas.DataFrame(data)


def detail(results, metric):
    """Per-step values as a frame indexed by cell, one column per decode step."""
    pandas = _pandas()
    cells, values = results.detail_arrays(metric)
    index = pandas.MultiIndex.from_arrays(
        [
            np.asarray(results.trace_names)[cells["trace"]],
            np.asarray(results.specs)[cells["variant"]],
            cells["layer"],
            cells["kv_head"],
            cells["budget_tokens"],
        ],
        names=["trace", "variant", "layer", "kv_head", "budget_tokens"],
    )
    return pandas.DataFrame(values, index=index, columns=pandas.RangeIndex(values.shape[1], name="step"))
