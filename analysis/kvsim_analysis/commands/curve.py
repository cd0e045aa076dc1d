"""Draws metrics against the cache budget: one panel per metric, one line per variant.

Without --y the panels are output error, consistency with the true decode queries, and miss rate. With several traces
the line is their mean and the band its 95% bootstrap interval (traces are what is resampled).
"""

import numpy as np

from .. import axes, curves, options, output, pool, select, style
from ..errors import UndefinedMetric, UserError
from ..page import Page

NAME = "curve"
SUMMARY = "metrics against the cache budget"
EXAMPLES = """examples:
  kvsim-plot curve runs/main
  kvsim-plot curve runs/main --y free_consistency evidence_recall --policy snapkv --policy h2o
  kvsim-plot curve runs/main --y output_error --stat p95 --x fraction -o error.pdf
  kvsim-plot curve runs/main --variant 'snapkv(window=32)' --variant streaming_llm --layer 0 1 2
  kvsim-plot curve runs/essay runs/chat --theme dark        two folders: their traces are averaged together
"""
PANELS = (("output_error",), ("set_consistency", "free_consistency", "query_consistency"), ("miss_rate",))
CROWDED = 12  # from so many lines on they are thinner and bands fainter


def add_arguments(parser):
    options.add_folders(parser)
    parser.add_argument(
        "--y", nargs="+", metavar="METRIC", help="metrics to draw, one panel each (see: kvsim list metrics)"
    )
    parser.add_argument(
        "--x", choices=curves.X_NAMES, default="budget_tokens", help="what the x axis is (default: budget_tokens)"
    )
    parser.add_argument(
        "--stat",
        default="mean",
        metavar="NAME",
        help="mean, p50, p95, p99, max; p5, p1, min where higher is better (default: mean)",
    )
    options.add_variants(parser)
    options.add_layers(parser)
    options.add_seed(parser)
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folders[0], NAME, lambda: draw(pool.open_all(args.folders), args))


def draw(source, args):
    """The figure for parsed options; raises UserError when the results lack what is asked."""
    variants = select.Variants(source)
    chosen = variants.choose(args.policy, args.variant, not args.no_references)
    gathered = _gather(source, chosen, args)
    looks = dict(
        zip(
            chosen,
            style.looks([variants.policies[i] for i in chosen], [variants.labels[i] for i in chosen], args.theme),
        )
    )
    page = Page(len(gathered), args.theme)
    ends = x_range(source, gathered)
    line = _prompt_line(source, args.x, ends)
    for ax, (metric, data) in zip(page.axes, gathered.items()):
        axes.log_x(ax, args.x, ends[0], max(ends[1], line or 0), page.size[0])
        panel(page, ax, source, metric, data, looks, args)
        if line:
            ax.axvline(line, color=page.theme["faint"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    drawn = [i for i in chosen if any(i in d.curves for d in gathered.values())]
    page.legend([looks[i] for i in drawn if not looks[i].reference])
    page.legend([looks[i] for i in drawn if looks[i].reference], "references")
    traces = max(d.traces for d in gathered.values())
    what = "mean" if args.stat == "mean" else args.stat
    page.notes(
        options.lengths_of(source),
        f"{what} over {options.averaged_over(source, args.layer)}"
        + (f", then the mean over {traces} traces with its 95% bootstrap interval" if traces > 1 else ""),
        "vertical line: the whole prompt" if line else "",
        (
            "budgets of the whole prompt and above are left out, since nothing is evicted there"
            if any(d.trimmed for d in gathered.values())
            else ""
        ),
    )
    page.title(options.title_of(source, args.title))
    return page.finish()


def _gather(source, chosen, args):
    """{metric: CurveData}; a default panel without any value is left out, one that was asked for is an error."""
    gathered, fault = {}, None
    for metric in _metrics(source, args):
        try:
            gathered[metric] = curves.gather(source, metric, chosen, args.x, args.stat, args.layer, args.seed)
        except UndefinedMetric as error:
            fault = error
            if args.y:
                raise
    if not gathered:
        raise fault
    return gathered


def _metrics(source, args):
    """The metrics of the panels: those asked for, or the default ones that this run has."""
    if args.y:
        for metric in args.y:
            select.metric_info(source, metric)
        return list(dict.fromkeys(args.y))
    found = [next((m for m in names if select.in_summary(source, m)), None) for names in PANELS]
    found = [m for m in found if m]
    options.require(
        found, f"{source.path} has none of the default metrics; choose with --y: {', '.join(source.metric_names)}"
    )
    if args.stat not in ("mean", "p50"):
        # Tail quantiles exist on one side only, so draw the panels that have the one asked for.
        having = [m for m in found if f"{m}_{args.stat}" in source.column_names["summary"]]
        if not having:
            select.summary_column(source, found[0], args.stat)
        return having
    return found


def x_range(source, gathered):
    """Smallest and largest x of the variants; `full`, drawn as a level, counts only when there is nothing else."""
    shown = [(i, c) for d in gathered.values() for i, c in d.curves.items()]
    shown = [c for i, c in shown if not is_full(source, i)] or [c for _, c in shown]
    xs = [c.x[np.isfinite(c.x) & (c.x > 0)] for c in shown]
    xs = np.concatenate(xs) if xs else np.array([])
    if not len(xs):
        raise UserError("nothing to draw: no budget of the chosen variants has a size")
    return float(xs.min()), float(xs.max())


def _prompt_line(source, x, ends):
    """Where the prompt ends on the x axis, if all traces agree and the place is near what is drawn."""
    prompts = np.unique(source.trace_table["prompt"])
    if x == "fraction":
        at = 1.0
    elif x == "budget_tokens" and len(prompts) == 1:
        at = float(prompts[0])
    else:
        return None
    return at if ends[0] < at <= 1.7 * ends[1] else None


def panel(page, ax, source, metric, data, looks, args):
    """Draws the curves of one metric into a panel; `looks` by variant."""
    unit, direction = select.metric_info(source, metric)
    body = [c.mean for i, c in data.curves.items() if not is_full(source, i)] or [c.mean for c in data.curves.values()]
    levels = [np.nanmedian(c.mean) for i, c in data.curves.items() if is_full(source, i) and np.isfinite(c.mean).any()]
    log = axes.y_axis(ax, np.concatenate(body), metric, linear_too=levels)
    crowded = sum(not looks[i].reference for i in data.curves) > CROWDED
    note = f"{direction} is better"
    for i, curve in data.curves.items():
        look = looks[i]
        if is_full(source, i):
            level = float(np.nanmedian(curve.mean)) if np.isfinite(curve.mean).any() else np.nan
            if log and not level > ax.get_ylim()[0]:
                note += f"; full ({level:.0e}) lies below" if level > 0 else "; full (0) lies below"
            else:
                ax.axhline(level, **look.line(args.theme))
            continue
        kwargs = look.line(args.theme, *((1.05, 3.4) if crowded else ()))
        if len(curve.x) == 1 and not look.marker:
            kwargs.update(marker="_", markersize=9)
        ax.plot(curve.x, curve.mean, markevery=_spread(curve.x), **kwargs)
        if np.isfinite(curve.low).any():
            ax.fill_between(
                curve.x,
                curve.low,
                curve.high,
                color=look.color,
                alpha=0.08 if crowded else 0.16,
                linewidth=0,
                zorder=1.5,
            )
    page.y_label(ax, style.axis_label(metric, unit, args.stat))
    page.panel_note(ax, note)


def is_full(source, variant):
    return str(source.variant_table["policy"][variant]) == "full"


def _spread(x, most=16):
    """Indices of the points that get a marker: all, or about `most` evenly spread over the log axis."""
    if len(x) <= most:
        return list(range(len(x)))
    at = np.log(np.maximum(x, 1e-12))
    return sorted({int(np.argmin(np.abs(at - a))) for a in np.linspace(at[0], at[-1], 10)})
