"""Draws the miss-ratio curves of `kvsim pages`: a measure against the capacity, a line per policy.

Guarded forms are dashed and hollow in the hue of their base. Bands are 95% intervals over the KV heads of a recording.
"""

import matplotlib.ticker
import numpy as np

from . import options, output, pages_table
from .errors import unknown
from .page import Page

NAME = "mrc"
SUMMARY = "miss ratio or cost ratio of page policies against the capacity (kvsim pages)"
EXAMPLES = """examples:
  kvsim pages t.h5 --policy lru --policy 'guard(base=lru)' --capacity 8..64*2 --out runs/pages
  kvsim-plot mrc runs/pages
  kvsim-plot mrc runs/pages --y miss_ratio cost_ratio --variant lru
  kvsim-plot mrc runs/pages --curve                the whole curves of kvsim pages --curve
"""
_MOST_BANDS = 6  # more of them hide each other
_MEASURES = {"miss_ratio": "miss ratio", "cost_ratio": "misses / optimum", "fetched_bytes_per_step": "bytes fetched per step",
             "output_error_without_recall": "output error without recall"}


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR", help="results folder of `kvsim pages`")
    parser.add_argument("--y", nargs="+", metavar="MEASURE", default=["miss_ratio", "cost_ratio"], help="any of: " + ", ".join(_MEASURES))
    parser.add_argument("--trace", metavar="NAME", help="one trace, where there are several")
    parser.add_argument("--variant", action="append", metavar="TEXT", help="only variants whose spec contains this (repeatable)")
    parser.add_argument("--curve", action="store_true", help="draw curves.csv instead of the listed capacities")
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folder, NAME, lambda: draw(args))


def draw(args):
    """The figure for parsed options."""
    for measure in args.y:
        if measure not in _MEASURES:
            raise unknown("measure", measure, list(_MEASURES))
    rows = pages_table.read(args.folder, "curves.csv" if args.curve else "summary.csv")
    rows = pages_table.choose(pages_table.one_trace(rows, args.trace), args.variant)
    measures = ["miss_ratio"] if args.curve else args.y
    variants = list(dict.fromkeys(r["variant"] for r in rows))
    looks = pages_table.looks(variants, args.theme)
    page = Page(len(measures), args.theme, columns=2, size=(4.2, 3.0))
    streams = max(int(r.get("streams") or 1) for r in rows)
    for ax, measure in zip(page.axes, measures):
        for variant in variants:
            mine = sorted((r for r in rows if r["variant"] == variant), key=lambda r: int(r["capacity"]))
            _line(ax, mine, measure, looks[variant], args, streams, len(variants) <= _MOST_BANDS)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        ax.set_xlabel("capacity [pages]")
        page.y_label(ax, _MEASURES[measure])
        page.panel_note(ax, "lower is better")
        if measure in ("miss_ratio", "output_error_without_recall"):
            ax.set_ylim(bottom=0)
    page.legend([looks[v] for v in variants if not looks[v].reference])
    page.legend([looks[v] for v in variants if looks[v].reference], "reference")
    bands = ", band: 95% interval" if len(variants) <= _MOST_BANDS else ""
    page.notes("mean over KV heads" + bands if streams > 1 else "", "dashed: guarded" if any(pages_table.base_of(v)[1] for v in variants) else "")
    page.title(args.title if args.title is not None else rows[0]["trace"])
    return page.finish()


def _line(ax, rows, measure, look, args, streams, banded):
    x = np.array([int(r["capacity"]) for r in rows], float)
    mean = measure + "_mean" if streams > 1 or measure + "_mean" in rows[0] and measure not in rows[0] else measure
    y = np.array([pages_table.number(r.get(mean, "")) for r in rows])
    band = np.array([pages_table.number(r.get("error" if args.curve else measure + "_half_width", "")) for r in rows])
    if not np.isfinite(y).any():
        return
    if banded and np.isfinite(band).any():
        ax.fill_between(x, y - band, y + band, color=look.color, alpha=0.10, linewidth=0)
    ax.plot(x, y, markevery=max(1, len(x) // 12), **look.line(args.theme, 1.2, 3.6))
