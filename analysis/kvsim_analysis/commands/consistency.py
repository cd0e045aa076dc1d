"""Draws how close window queries, pseudo queries and their union come to the true decode queries.

Six panels: consistency on the tokens that a policy was free to choose, and with the same policy's choice in hindsight, against
the budget; by layer; over the decode steps (needs `kvsim run --detail steps`); and what it buys, output error and misses.
Colours tell whose queries a variant looks at. The run that it is made for:

  kvsim run TRACE --config analysis/studies/consistency.ini --out runs/consistency
"""

import matplotlib
import numpy as np

from .. import axes, curves, options, output, pool, select, sources, style
from ..errors import UndefinedMetric, UserError
from ..page import Page
from . import curve, steps

NAME = "consistency"
SUMMARY = "do window or pseudo queries choose what the true decode queries want?"
EXAMPLES = """examples:
  kvsim run trace.h5 --config analysis/studies/consistency.ini --out runs/consistency
  kvsim-plot consistency runs/consistency
  kvsim-plot consistency runs/consistency --budget 64 --variant 'snapkv(window=8)' --variant laq_pp -o paper.pdf
  kvsim-plot consistency runs/consistency --corrected      chance is 0, the oracle is 1
"""
STUDIED = ("window", "pseudo", "union", "oracle")
MOST_BANDS = 4  # lines that get an interval


def add_arguments(parser):
    options.add_folders(parser)
    parser.add_argument(
        "--budget",
        metavar="B",
        help="of the panels by layer and by step: tokens, or a percentage of the run (default: near an eighth of the prompt)",
    )
    parser.add_argument(
        "--corrected", action="store_true", help="free_consistency corrected for chance: 0 is random, 1 the oracle"
    )
    parser.add_argument(
        "--smooth", type=options.whole_number, default=1, metavar="N", help="running mean over N steps (default: 1, none)"
    )
    options.add_variants(parser)
    options.add_seed(parser)
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folders[0], NAME, lambda: draw(pool.open_all(args.folders), args))


def draw(source, args):
    """The figure for parsed options."""
    args.stat, args.x, args.layer, args.trace, args.kv_head = "mean", "budget_tokens", None, None, None
    variants = select.Variants(source)
    chosen = _chosen(source, variants, args)
    free = "free_consistency_corrected" if args.corrected else "free_consistency"
    label, mask = select.budget(source, args.budget)
    gathered = {m: _gathered(source, m, chosen, args) for m in (free, "window_consistency", "output_error", "miss_rate")}
    if gathered[free] is None:
        raise UserError(f"{source.path} has no {free}; run again without --metrics, or with it among them")
    by_layer = _by_layer(source, free, chosen, mask)
    by_step = _by_step(source, chosen, label, args)
    panels = [
        (kind, metric, data)
        for kind, metric, data in (
            ("budget", free, gathered[free]),
            ("budget", "window_consistency", gathered["window_consistency"]),
            ("layer", free, by_layer),
            ("budget", "output_error", gathered["output_error"]),
            ("budget", "miss_rate", gathered["miss_rate"]),
            ("step", "query_consistency", by_step),
        )
        if data is not None
    ]
    looks = _looks(variants, chosen, args.theme)
    page = Page(len(panels), args.theme, columns=3, size=(2.62, 2.4))
    ends = curve.x_range(source, {m: d for m, d in gathered.items() if d is not None})
    for ax, (kind, metric, data) in zip(page.axes, panels):
        if kind == "budget":
            axes.log_x(ax, args.x, *ends, page.size[0])
            curve.panel(page, ax, source, metric, data, looks, args)
        elif kind == "layer":
            _layer_panel(page, ax, source, metric, data, looks, args)
        else:
            steps.panel(page, ax, source, metric, data, looks, args)
    drawn = {i for kind, _, data in panels for i in (data.curves if kind == "budget" else data)}
    page.legend([looks[i] for i in chosen if i in drawn and not looks[i].reference])
    page.legend([looks[i] for i in chosen if i in drawn and looks[i].reference], "references")
    traces = len(source.trace_names)
    page.notes(
        options.lengths_of(source),
        f"mean over {options.averaged_over(source)}"
        + (f", then over {traces} traces" if traces > 1 else "")
        + (" with its 95% bootstrap interval" if _banded(source, chosen) else ""),
        f"panels by layer and by step: budget {label}",
        "free consistency leaves out what a policy protects, query consistency (by step) does not",
        "" if by_step is not None else "no panel by step: the run has no per-step values (--detail steps)",
    )
    page.title(options.title_of(source, args.title))
    return page.finish()


def _chosen(source, variants, args):
    """Variants that look at windows, pseudo queries or true ones (or those named), then the references that say something."""
    if args.policy or args.variant:
        chosen = variants.choose(args.policy, args.variant, False)
    else:
        chosen = [i for i in variants.others if sources.source_of(variants.specs[i]) in STUDIED]
    options.require(
        chosen,
        f"no variant of {source.path} looks at window or pseudo queries; make a run with: "
        "kvsim run TRACE --config analysis/studies/consistency.ini --out DIR",
    )
    order = list(sources.SOURCES)
    chosen.sort(key=lambda i: (order.index(sources.source_of(variants.specs[i])), i))
    if not args.no_references:
        chosen += [i for i in variants.references if variants.policies[i] in ("oracle_static", "random")]
    return chosen


def _looks(variants, chosen, theme):
    own = [i for i in chosen if i not in variants.references]
    looks = dict(zip(own, sources.looks([variants.specs[i] for i in own], [variants.labels[i] for i in own], theme)))
    rest = [i for i in chosen if i not in looks]
    looks.update(zip(rest, style.looks([variants.policies[i] for i in rest], [variants.labels[i] for i in rest], theme)))
    return looks


def _gathered(source, metric, chosen, args):
    """CurveData of a metric; None where the run lacks it or it is undefined. By definition 1 for oracle_static: left out."""
    if not select.in_summary(source, metric):
        return None
    if "free" in metric:
        chosen = [i for i in chosen if source.variant_table["policy"][i] != "oracle_static"]
    if "error" in metric:
        chosen = [i for i in chosen if source.variant_table["policy"][i] != "random"]
    try:
        data = curves.gather(source, metric, chosen, args.x, args.stat, None, args.seed)
    except UndefinedMetric:
        return None
    if not _banded(source, chosen):
        for line in data.curves.values():
            line.low[:] = line.high[:] = np.nan
    return data


def _banded(source, chosen):
    """Whether there is room for the intervals of the lines; the bands of many lie on one another."""
    own = [i for i in chosen if source.variant_table["policy"][i] not in ("oracle_static", "random")]
    return len(source.trace_names) > 1 and len(own) <= MOST_BANDS


def _by_layer(source, metric, chosen, mask):
    """{variant: (layers, means over traces and KV heads)} at one budget."""
    values, layer = source.column("rows", metric), source.column("rows", "layer")
    variant = source.column("rows", "variant")
    out = {}
    for i in chosen:
        if source.variant_table["policy"][i] in ("oracle_static", "random"):
            continue
        rows = mask & (variant == i) & np.isfinite(values)
        if not rows.any():
            continue
        names, at = np.unique(layer[rows], return_inverse=True)
        out[i] = names, np.bincount(at.reshape(-1), values[rows]) / np.bincount(at.reshape(-1))
    return out or None


def _by_step(source, chosen, label, args):
    if "query_consistency" not in source.detail_metrics:
        return None
    chosen = [i for i in chosen if source.variant_table["policy"][i] != "random"]
    return steps.lines_of(source, "query_consistency", chosen, label, args)


def _layer_panel(page, ax, source, metric, data, looks, args):
    unit, direction = select.metric_info(source, metric)
    axes.y_axis(ax, np.concatenate([means for _, means in data.values()]), metric)
    for i, (layers, means) in data.items():
        ax.plot(layers, means, markevery=max(1, len(layers) // 8), **looks[i].line(args.theme, 1.2, 3.6))
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(7, integer=True))
    ax.set_xlabel("layer")
    page.y_label(ax, style.axis_label(metric, unit))
    page.panel_note(ax, f"{direction} is better")
