"""Gathers a metric of every variant into curves over budgets: arrays [trace, point] ready to average."""

from dataclasses import dataclass

import numpy as np

from . import select
from .bootstrap import mean_interval
from .errors import UndefinedMetric, UserError

X_NAMES = ("budget_tokens", "resident_tokens", "resident_bytes", "resident_union_bytes", "fraction")


@dataclass
class Curve:
    """One variant's points, sorted by x: mean and interval over traces; `budgets` in tokens, averaged likewise."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    budgets: np.ndarray


@dataclass
class CurveData:
    """The curves of one metric by variant index, and whether budgets of whole prompts were left out."""

    curves: dict
    trimmed: bool
    traces: int


def gather(source, metric, variants, x="budget_tokens", stat="mean", wanted_layers=None, seed=0):
    """CurveData of `metric` for the given variants.

    Points where every trace's prompt fits its budget (with a decode-time policy: prompt and answer) are dropped: nothing is
    evicted there, and a zero error has no place on a log axis. They stay when there is nothing else to draw.
    """
    table = _Table(source, metric, stat, wanted_layers)
    y, xs, budgets = table.pivot("y"), table.pivot(x), table.pivot("budget_tokens")
    with np.errstate(invalid="ignore"):
        trivial = ~(budgets < table.evictable()[:, :, None]).any(0)  # [variant, point]
    seen = ~np.isnan(budgets).all(0)
    trim = not trivial[variants].all()
    curves = {}
    for v in variants:
        whole = source.variant_table["policy"][v] == "full"
        points = np.flatnonzero(seen[v] & ~trivial[v] if trim and not whole else seen[v])
        if not len(points):
            continue
        at = mean_interval(xs[:, v, points])[0]
        order = np.argsort(at, kind="stable")
        points = points[order]
        mean, low, high = mean_interval(y[:, v, points], seed)
        curves[v] = Curve(at[order], mean, low, high, mean_interval(budgets[:, v, points])[0])
    if not any(np.isfinite(c.mean).any() for c in curves.values()):
        raise UndefinedMetric(f"{metric} is undefined in every row chosen from {source.path}")
    trimmed = trim and bool((trivial[variants] & seen[variants]).any())
    return CurveData(curves, trimmed, int(np.isfinite(y[:, variants]).any((1, 2)).sum()))


class _Table:
    """The (trace, variant, point) cells behind a metric: from /summary, or averaged from /rows or /layer_rows by layer."""

    def __init__(self, source, metric, stat, wanted_layers):
        self.source = source
        self.name = "layers" if metric in source.column_names["layers"] else "rows"
        select.metric_info(source, metric)
        only_here = not select.in_summary(source, metric) and metric in source.column_names[self.name]
        if wanted_layers or (only_here and stat == "mean"):
            if stat != "mean":
                raise UserError(
                    f"--stat {stat} is over all layers; with --layer only the mean is known, drop one of the two"
                )
            if metric not in source.column_names[self.name]:
                raise UserError(f"{metric} is a figure of the whole trace and has no value per layer; drop --layer")
            column = metric
            self.keep = np.isin(source.column(self.name, "layer"), select.layers(source, wanted_layers))
        else:
            self.name, column = "summary", select.summary_column(source, metric, stat)
            self.keep = slice(None)
        self.column = column
        self.prompts = np.asarray(source.trace_table["prompt"], float)
        request, tokens = self._get("budget_request"), self._get("budget_tokens")
        self.trace, self.variant = self._get("trace"), self._get("variant")
        self.point = self._points(request, tokens)
        self.shape = (len(source.trace_names), len(source.specs), int(self.point.max()) + 1)

    def evictable(self):
        """Tokens that a budget counts, [trace, variant]: the prompt, for decode-time policies with what is decoded."""
        decode = np.asarray(self.source.trace_table.get("decode", np.zeros(len(self.prompts))), float)
        live = np.array([str(p).startswith("decode:") for p in self.source.variant_table["policy"]])
        return self.prompts[:, None] + decode[:, None] * live[None, :]

    def _get(self, name):
        return self.source.column(self.name, name)[self.keep]

    def _points(self, request, tokens):
        """Point numbers: one per budget as it was asked for, or per size where one request stands for many sizes."""
        by_size = np.unique(tokens, return_inverse=True)[1].reshape(-1)
        curve = np.asarray(self.trace, np.int64) * len(self.source.specs) + self.variant
        key = curve * (int(request.max()) + 1) + request
        if len(np.unique(key)) == len(np.unique(key * (int(by_size.max()) + 1) + by_size)):
            return np.unique(request, return_inverse=True)[1].reshape(-1)
        return by_size

    def pivot(self, what):
        """Means [trace, variant, point] of a column; NaN where there is none."""
        values = np.asarray(self._values(what), float)
        flat = np.ravel_multi_index((self.trace, self.variant, self.point), self.shape)
        present = np.isfinite(values)
        size = int(np.prod(self.shape))
        total = np.bincount(flat[present], values[present], size)
        count = np.bincount(flat[present], minlength=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count > 0, total / count, np.nan).reshape(self.shape)

    def _values(self, what):
        if what == "y":
            return self._get(self.column)
        if what == "fraction":
            return self._get("budget_tokens") / self.prompts[self.trace]
        if what in ("resident_bytes", "resident_union_bytes"):
            names = (what, f"{what}_mean")
            there = self.source.column_names[self.name]
            name = next((n for n in names if n in there), None)
            if name is None:
                raise UserError(
                    f"/{self.name} of {self.source.path} has no {what}; it must be among the run's --metrics"
                )
            return self._get(name)
        return self._get(what)
