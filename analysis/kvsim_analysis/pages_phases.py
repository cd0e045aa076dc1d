"""Draws what Guard did phase by phase: misses, detected errors and guards, against the time at which the phase began.

This needs the phases, which a run keeps only when asked: kvsim pages ... --detail phases
"""

import matplotlib.ticker
import numpy as np

from . import options, output, pages_table
from .errors import UserError
from .page import Page

NAME = "phases"
SUMMARY = "misses and guards of Guard phase by phase (needs `kvsim pages --detail phases`)"
EXAMPLES = """examples:
  kvsim pages t.jsonl --policy 'guard(base=blindoracle(popu))' --capacity 100 --detail phases --out runs/pages
  kvsim-plot phases runs/pages --capacity 100
"""
_PANELS = (("misses", "misses in the phase"), ("errors", "detected errors"), ("guards", "guarded pages"))


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR", help="results folder of `kvsim pages --detail phases`")
    parser.add_argument("--capacity", type=options.whole_number, metavar="N", help="where there are several (default: the first)")
    parser.add_argument("--trace", metavar="NAME", help="one trace, where there are several")
    parser.add_argument("--stream", metavar="NAME", help="one stream such as 'layer 4 head 0' (default: the first)")
    parser.add_argument("--variant", action="append", metavar="TEXT", help="only variants whose spec contains this (repeatable)")
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folder, NAME, lambda: draw(args))


def draw(args):
    """The figure for parsed options."""
    rows = pages_table.choose(pages_table.one_trace(pages_table.read(args.folder, "phases.csv"), args.trace), args.variant)
    for name, asked in (("stream", args.stream), ("capacity", None if args.capacity is None else str(args.capacity))):
        there = list(dict.fromkeys(r[name] for r in rows))
        wanted = there[0] if asked is None else asked
        if wanted not in there:
            raise UserError(f"no {name} {wanted} here; there are: {', '.join(there)}")
        rows = [r for r in rows if r[name] == wanted]
    variants = list(dict.fromkeys(r["variant"] for r in rows))
    looks = pages_table.looks(variants, args.theme)
    page = Page(len(_PANELS), args.theme, columns=3)
    for ax, (column, label) in zip(page.axes, _PANELS):
        for variant in variants:
            mine = [r for r in rows if r["variant"] == variant]
            begin = np.array([int(r["begin"]) for r in mine])
            ax.plot(begin, [int(r[column]) for r in mine], markevery=max(1, len(begin) // 12), **looks[variant].line(args.theme, 1.0, 3.2))
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        ax.set_xlabel("time at which the phase began")
        page.y_label(ax, label)
    page.legend([looks[v] for v in variants])
    page.notes(f"{rows[0]['stream']}, capacity {rows[0]['capacity']} pages")
    page.title(args.title if args.title is not None else rows[0]["trace"])
    return page.finish()
