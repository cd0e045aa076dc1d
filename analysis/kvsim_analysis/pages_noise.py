"""Draws misses / optimum against the error of predictions: one line per policy, the theorem's bound as a line.

The noise is read from the specs: oracle(noise=normal(sigma)), lognormal(sigma), labels(noise=flip(p)). Policies without
noise are horizontal lines. Lines are means over seeds (variants that differ in nothing but their seeds) and KV heads. The
bound 2 H_{k-1} + 2 speaks of the expectation of strict Guard, not of a single run.
"""

import re
from collections import defaultdict

import numpy as np

from . import options, output, pages_table
from .errors import UserError
from .page import Page
from .style import Look

NAME = "noise"
SUMMARY = "cost ratio of page policies against the error of their predictions (kvsim pages)"
EXAMPLES = """examples:
  kvsim pages t.jsonl --policy 'blindoracle(oracle(noise=normal({0,100,1000})))' \\
    --policy 'guard(blindoracle(oracle(noise=normal({0,100,1000}))),seed=0..9)' --policy lru --capacity 100 --out runs/noise
  kvsim-plot noise runs/noise
"""
_SEED = re.compile(r"seed=\d+")


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR", help="results folder of `kvsim pages`")
    parser.add_argument("--capacity", type=options.whole_number, metavar="N", help="where there are several (default: the first)")
    parser.add_argument("--trace", metavar="NAME", help="one trace, where there are several")
    parser.add_argument("--variant", action="append", metavar="TEXT", help="only variants whose spec contains this (repeatable)")
    parser.add_argument("--no-bound", action="store_true", help="leave the bound out, where it is far above everything")
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folder, NAME, lambda: draw(args))


def draw(args):
    """The figure for parsed options."""
    rows = pages_table.choose(pages_table.one_trace(pages_table.read(args.folder, "summary.csv"), args.trace), args.variant)
    capacities = sorted({int(r["capacity"]) for r in rows})
    capacity = args.capacity if args.capacity is not None else capacities[0]
    if capacity not in capacities:
        raise UserError(f"no capacity {capacity} here; there are: {', '.join(map(str, capacities))}")
    rows = [r for r in rows if int(r["capacity"]) == capacity]
    noisy, flat, bound, kinds = _groups(rows)
    if not noisy:
        raise UserError("no variant here has noise, such as blindoracle(oracle(noise=normal({0,100,1000})))")
    looks = pages_table.looks(list(noisy) + list(flat), args.theme)
    page = Page(1, args.theme, size=(5.6, 3.4))
    ax = page.axes[0]
    amounts = sorted({a for points in noisy.values() for a in points})
    for family, points in noisy.items():
        x = sorted(points)
        ax.plot(x, [np.mean(points[a]) for a in x], **looks[family].line(args.theme, 1.3, 4.0))
    for family, values in flat.items():
        ends = np.array([amounts[0], amounts[-1]])
        ax.plot(ends, np.full(2, np.mean(values)), **looks[family].line(args.theme, 1.1, 4.0))
    shown = [looks[f] for f in list(noisy) + list(flat)]
    tallest = max([np.mean(v) for points in noisy.values() for v in points.values()] + [np.mean(v) for v in flat.values()])
    # A bound far above everything measured would leave the curves no room: then the note names it.
    shows_bound = np.isfinite(bound) and not args.no_bound and bound <= 2.5 * tallest
    if shows_bound:
        look = Look("2 H_{k-1} + 2, bound of strict Guard's mean".replace("H_{k-1}", "H(k-1)"), page.theme["ink"], (0, (2.2, 2.2)), None, False, True)
        ax.axhline(bound, color=look.color, linestyle=look.dashes, linewidth=1.0)
        shown.append(look)
    positive = [a for a in amounts if a > 0]
    if "flip" not in kinds and positive and max(positive) > 20 * min(positive):
        ax.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
        if len(amounts) <= 10:  # the scale's own ticks crowd near zero
            ax.set_xticks(amounts, [f"{a / 1000:g}k" if a >= 1000 else f"{a:g}" for a in amounts])
            ax.set_xticks([], minor=True)
    ax.set_xlim(amounts[0], amounts[-1] * 1.03)
    ax.set_xlabel({"flip": "share of turned labels", "normal": "noise, standard deviation [requests or steps]",
                   "lognormal": "sigma of log-normal noise"}[sorted(kinds)[0]])
    page.y_label(ax, "misses / optimum")
    page.legend(shown)
    about = "the bound is about the mean over Guard's coins, not one run"
    if np.isfinite(bound) and not shows_bound:
        about = f"2 H(k-1) + 2 = {bound:.3g}, the bound of strict Guard's mean, lies above"
    page.notes(f"capacity {capacity} pages", "means over seeds and KV heads", about)
    page.title(args.title if args.title is not None else rows[0]["trace"])
    return page.finish()


def _groups(rows):
    """({family: {amount: [ratio]}}, {family: [ratio]}, bound, kinds of noise)."""
    noisy, flat, bound, kinds = defaultdict(lambda: defaultdict(list)), defaultdict(list), float("nan"), set()
    for row in rows:
        ratio = pages_table.number(row["cost_ratio"])
        if not np.isfinite(ratio):
            continue
        family, kind, amount = pages_table.noise_of(_SEED.sub("seed=0", row["variant"]))
        if kind is None:
            flat[family].append(ratio)
        else:
            kinds.add(kind)
            noisy[family][amount].append(ratio)
        if np.isfinite(pages_table.number(row["bound"])):
            bound = pages_table.number(row["bound"])
    if len(kinds) > 1:
        raise UserError(f"there are several kinds of noise ({', '.join(sorted(kinds))}); choose one with --variant")
    return noisy, flat, bound, kinds
