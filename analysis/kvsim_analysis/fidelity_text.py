"""The fidelity tables as text and as CSV: rank correlations per prompt, and what a screen would have missed."""

import csv
import io
import itertools

import numpy as np

MEAN = "mean over prompts"


def correlation_table(judgement, found):
    """Lines of text: a row per predictor, a column per prompt, then the mean over prompts with its interval."""
    several = len(judgement.traces) > 1
    traces = [_short(t) for t in judgement.traces]
    header = ["predictor", *(traces if several else ()), MEAN if several else traces[0], "95% interval"]
    rows = [header]
    for c in sorted(found, key=lambda c: -np.nan_to_num(c.mean, nan=-2.0)):
        rows.append([c.predictor, *(map(number, c.per_trace) if several else ()), number(c.mean), interval(c)])
    over = "prompts" if several else "(policy, budget) cells, as there is one prompt"
    return [
        "rank correlation (Spearman) with the true KL of the model; 1 = the same order of policies; the sign is turned where more is better",
        f"{max(c.points for c in found)} (policy, budget) cells; interval: bootstrap over {over}",
        "",
        *aligned(rows),
    ]


def screen_table(found, quarter, labels):
    """Lines of text: per budget and predictor, how many of the truly best are among its best, and which are not.

    `quarter` are the screens for the best quarter, in the order of `found`.
    """
    lines = []
    for budget, pairs in itertools.groupby(zip(found, quarter), lambda pair: pair[0].budget):
        rows = [_screen_row(s, q, labels) for s, q in pairs]
        s, q = next((s, q) for s, q in zip(found, quarter) if s.budget == budget)
        head = [
            "screen by",
            f"best {s.best}",
            f"best {q.best}",
            f"missed among its best {s.best}",
            f"among its best {2 * s.best}",
        ]
        said = f"budget {budget}: of the best {s.best}, and the best quarter, of {s.variants} variants by true KL, how many a screen finds"
        lines += ["", said, "", *aligned([head, *rows], left=(3, 4))]
    return lines


def _screen_row(s, q, labels):
    missed = [", ".join(labels[v] for v in names) or "-" for names in (s.missed, s.missed_double)]
    return [s.predictor, *(f"{x.best - len(x.missed)} of {x.best}" for x in (s, q)), *missed]


def correlation_csv(judgement, found):
    """predictor,prompt,spearman,low,high,cells: a line per prompt and one for the mean over prompts."""
    rows = [["predictor", "prompt", "spearman", "low", "high", "cells"]]
    for c in found:
        values = judgement.predictors[c.predictor]
        for trace, rho, v, k in zip(judgement.traces, c.per_trace, values, judgement.kl):
            alone = len(judgement.traces) == 1
            ends = [_exact(c.low), _exact(c.high)] if alone else ["", ""]
            rows.append([c.predictor, trace, _exact(rho), *ends, int((np.isfinite(v) & np.isfinite(k)).sum())])
        if len(judgement.traces) > 1:
            rows.append([c.predictor, MEAN, _exact(c.mean), _exact(c.low), _exact(c.high), c.points])
    return _csv(rows)


def screen_csv(found, specs):
    """budget,variants,best,predictor,missed,missed_double: how many, then which (specs with semicolons between)."""
    rows = [["budget", "variants", "best", "predictor", "missed", "missed_double", "missed_variants"]]
    for s in found:
        rows.append(
            [
                s.budget,
                s.variants,
                s.best,
                s.predictor,
                len(s.missed),
                len(s.missed_double),
                ";".join(specs[v] for v in s.missed),
            ]
        )
    return _csv(rows)


def aligned(rows, left=()):
    """Columns under each other: the first and those in `left` to the left, all others to the right."""
    width = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    flush = lambda i, cell: cell.ljust(width[i]) if i == 0 or i in left else cell.rjust(width[i])  # noqa: E731
    return ["  ".join(flush(i, cell) for i, cell in enumerate(row)).rstrip() for row in rows]


def number(value):
    return "-" if not np.isfinite(value) else f"{value:.2f}"


def interval(c):
    return "-" if not np.isfinite(c.low) else f"{c.low:.2f} to {c.high:.2f}"


def _short(name, most=14):
    return name if len(name) <= most else name[: most - 2] + ".."


def _exact(value):
    return "" if not np.isfinite(value) else repr(float(value))


def _csv(rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
