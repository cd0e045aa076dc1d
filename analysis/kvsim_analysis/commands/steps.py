"""Draws metrics over the decode steps, for chosen variants at one budget.

This needs per-step values, which a run keeps only when asked: kvsim run ... --detail steps
The metric cache_size, the tokens that a step could read, comes from the kept sets instead: kvsim run ... --save kept
"""

import numpy as np

from .. import axes, options, output, pool, select, style
from ..errors import UserError
from ..holding import CACHE_SIZE, cache_sizes
from ..page import Page

NAME = "steps"
SUMMARY = "a metric over the decode steps (needs `kvsim run --detail steps`)"
EXAMPLES = """examples:
  kvsim run trace.h5 --policy snapkv --policy h2o --budget 128 --detail steps --out runs/steps
  kvsim-plot steps runs/steps --budget 128
  kvsim-plot steps runs/steps --budget 128 --y output_error miss_rate --variant snapkv --variant h2o --smooth 8
  kvsim-plot steps runs/steps --layer 4 --kv-head 0
  kvsim run trace.h5 --policy decode:h2o --policy decode:tova --budget 128 --detail steps --save kept --out runs/live
  kvsim-plot steps runs/live --y cache_size miss_rate output_error
"""


def add_arguments(parser):
    options.add_folders(parser)
    parser.add_argument(
        "--y", nargs="+", metavar="METRIC", help="metrics to draw, one panel each (default: output_error)"
    )
    parser.add_argument(
        "--budget",
        metavar="B",
        help="tokens, or a percentage of the run such as 10%% (default: near an eighth of the prompt)",
    )
    parser.add_argument("--trace", metavar="NAME", help="one trace instead of the mean over all")
    parser.add_argument(
        "--kv-head", type=options.whole_number, metavar="N", help="one KV head instead of the mean over all"
    )
    parser.add_argument(
        "--smooth",
        type=options.whole_number,
        default=1,
        metavar="N",
        help="running mean over N steps (default: 1, none)",
    )
    options.add_variants(parser)
    options.add_layers(parser)
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folders[0], NAME, lambda: draw(pool.open_all(args.folders), args))


def draw(source, args):
    """The figure for parsed options."""
    metrics = list(
        dict.fromkeys(
            args.y or (["output_error"] if "output_error" in source.detail_metrics else source.detail_metrics[:1])
        )
    )
    for metric in metrics or ["output_error"]:
        if metric != CACHE_SIZE:
            select.metric_info(source, metric)
            source.detail_arrays(metric)
    variants = select.Variants(source)
    chosen = variants.choose(args.policy, args.variant, not args.no_references)
    label, _ = select.budget(source, args.budget)
    lines = {m: (_sizes if m == CACHE_SIZE else lines_of)(source, m, chosen, label, args) for m in metrics}
    looks = dict(
        zip(
            chosen,
            style.looks([variants.policies[i] for i in chosen], [variants.labels[i] for i in chosen], args.theme),
        )
    )
    size = {1: (6.2, 3.2), 3: (3.15, 2.5)}.get(len(metrics), (4.6, 2.7))
    page = Page(len(metrics), args.theme, columns=3 if len(metrics) == 3 else 2, size=size)
    for ax, (metric, drawn) in zip(page.axes, lines.items()):
        panel(page, ax, source, metric, drawn, looks, args)
    seen = [i for i in chosen if any(i in d for d in lines.values())]
    page.legend([looks[i] for i in seen if not looks[i].reference])
    page.legend([looks[i] for i in seen if looks[i].reference], "references")
    where = f"KV head {args.kv_head}" if args.kv_head is not None else "KV heads"
    layers = "layers" if not args.layer else "layers " + ", ".join(map(str, sorted(args.layer)))
    traces = 1 if args.trace else len(source.trace_names)
    page.notes(
        options.lengths_of(source),
        f"budget {label}",
        f"mean over {layers}{',' if traces > 1 else ' and'} {where}" + (f" and {traces} traces" if traces > 1 else ""),
        f"running mean over {args.smooth} steps" if args.smooth > 1 else "",
    )
    page.title(options.title_of(source, args.title))
    return page.finish()


def lines_of(source, metric, chosen, label, args):
    """{variant: [step]} of means over the chosen cells, smoothed."""
    cells, values = source.detail_arrays(metric)
    trace = options.one_trace(source, args.trace)
    keep = _at_budget(source, cells, label)
    keep &= np.isin(cells["layer"], select.layers(source, args.layer))
    if trace is not None:
        keep &= cells["trace"] == trace
    if args.kv_head is not None:
        heads = sorted({int(h) for h in np.unique(cells["kv_head"])})
        options.require(args.kv_head in heads, f"no KV head {args.kv_head} here; there are 0 to {heads[-1]}")
        keep &= cells["kv_head"] == args.kv_head
    out = {}
    for i in chosen:
        rows = keep & (cells["variant"] == i)
        if rows.any() and np.isfinite(values[rows]).any():
            out[i] = _smooth(_mean(values[rows].astype(float)), args.smooth)
    if not out:
        raise UserError(f"there are no per-step values of {metric} at budget {label} for the chosen variants")
    return out


def _sizes(source, metric, chosen, label, args):
    """{variant: [step]} of the tokens that a step could read, of the variants whose kept sets tell them."""
    options.require(len(args.folders) == 1, "cache_size is drawn from one results folder")
    trace = options.one_trace(source, args.trace)
    sizes = cache_sizes(source, chosen, select.budget(source, args.budget)[1], trace, args.layer, args.kv_head)
    options.require(sizes, f"no kept set at budget {label} for the chosen variants; run again with `kvsim run ... --save kept`")
    return {i: _smooth(values, args.smooth) for i, values in sizes.items()}


def _at_budget(source, cells, label):
    """Cells of the budget that select.budget found: a size, or a percentage taken of every trace's prompt."""
    number, percent = label.split()[0], label.endswith("%")
    if not percent:
        return cells["budget_tokens"] == int(number)
    request = source.column("rows", "budget_request") == [str(b) for b in source.budgets].index(label)
    pairs = {
        (int(t), int(b))
        for t, b in zip(source.column("rows", "trace")[request], source.column("rows", "budget_tokens")[request])
    }
    return np.array([(int(t), int(b)) in pairs for t, b in zip(cells["trace"], cells["budget_tokens"])], bool)


def _mean(values):
    present = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(present.any(0), np.where(present, values, 0).sum(0) / present.sum(0), np.nan)


def _smooth(values, width):
    """Centred running mean; at the ends over the steps there are."""
    if width <= 1:
        return values
    present = np.isfinite(values)
    kernel = np.ones(min(width, len(values)))
    count = np.convolve(present, kernel, "same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.convolve(np.where(present, values, 0), kernel, "same") / count


def panel(page, ax, source, metric, drawn, looks, args):
    """Draws lines over the decode steps into a panel; `looks` by variant."""
    unit, direction = ("tokens", "lower") if metric == CACHE_SIZE else select.metric_info(source, metric)
    full = [i for i in drawn if str(source.variant_table["policy"][i]) == "full"]
    body = [v for i, v in drawn.items() if i not in full] or list(drawn.values())
    log = axes.y_axis(ax, np.concatenate(body), metric, linear_too=[float(np.nanmax(drawn[i])) for i in full])
    for i, values in drawn.items():
        kwargs = looks[i].line(args.theme, 1.2, 3.6)
        steps = np.arange(len(values))
        if log and i in full:
            continue
        ax.plot(steps, values, markevery=(0, max(1, len(values) // 12)), **kwargs)
    ax.set_xlim(-0.5, max(len(v) for v in drawn.values()) - 0.5)
    ax.set_xlabel("decode step")
    page.y_label(ax, style.axis_label(metric, unit))
    page.panel_note(ax, f"{direction} is better" + ("; full lies below" if log and full else ""))
