"""Draws paired differences against the budget: of two variants of one run, or of the shared variants of two runs.

Pairs are the same trace, layer, KV head and budget. The band is a 95% bootstrap interval over traces, or, with one
trace, over (layer, KV head) pairs; where it excludes zero, the difference is more than chance between those units.
"""

import numpy as np

from .. import axes, options, output, pool, select, style
from ..bootstrap import mean_interval
from ..errors import UserError
from ..page import Page
from ..results import load

NAME = "compare"
SUMMARY = "paired differences of two variants, or of two runs"
EXAMPLES = """examples:
  kvsim-plot compare runs/main --variant 'snapkv(window=16)' --variant 'snapkv(window=64)'
  kvsim-plot compare runs/main --variant h2o --variant tova --y output_error miss_rate
  kvsim-plot compare runs/before runs/after                      the same variants in two runs
  kvsim-plot compare runs/before runs/after --variant ada
"""


def add_arguments(parser):
    parser.add_argument("folders", metavar="DIR", nargs="+", help="one run (name two variants), or two runs")
    parser.add_argument(
        "--y",
        nargs="+",
        metavar="METRIC",
        help="metrics to compare (default: output error, set consistency, miss rate)",
    )
    parser.add_argument(
        "--x",
        choices=("budget_tokens", "fraction"),
        default="budget_tokens",
        help="what the x axis is (default: budget_tokens)",
    )
    options.add_variants(parser)
    options.add_layers(parser)
    options.add_seed(parser)
    options.add_output(parser, NAME)


def run(args):
    options.require(len(args.folders) <= 2, f"compare takes one or two folders, not {len(args.folders)}")
    return output.save(args, args.folders[0], NAME, lambda: draw([load(f) for f in args.folders], args))


def draw(runs, args):
    """The figure for one run and two variants, or for two runs."""
    source = runs[0]
    metrics = (
        list(dict.fromkeys(args.y))
        if args.y
        else [m for m in ("output_error", "set_consistency", "miss_rate") if all(m in r.metric_names for r in runs)]
    )
    options.require(metrics, "the runs share none of the default metrics; choose with --y")
    for run in runs:
        for metric in metrics:
            select.metric_info(run, metric)
            options.require(
                metric in run.column_names["rows"], f"{metric} has no value per KV head, so it cannot be paired"
            )
    pairs, page_looks, sentence = (_two_variants if len(runs) == 1 else _two_runs)(runs, args)
    page = Page(len(metrics), args.theme, gap=0.8, left=0.8)
    unit_name, spans = "", []
    for ax, metric in zip(page.axes, metrics):
        spans.append(_panel(page, ax, runs, metric, pairs, page_looks, args))
        unit_name = spans[-1][2] or unit_name
    for ax in page.axes:
        axes.log_x(ax, args.x, min(s[0] for s in spans), max(s[1] for s in spans), page.size[0])
    page.legend(page_looks if len(runs) == 2 else [])
    page.notes(
        sentence,
        f"band: 95% bootstrap interval over {unit_name}" if unit_name else "",
        options.lengths_of(source),
        f"layers {', '.join(map(str, sorted(args.layer)))}" if args.layer else "",
    )
    page.title(options.title_of(source, args.title))
    return page.finish()


def _two_variants(runs, args):
    """Pairs for one run: the second variant minus the first."""
    variants = select.Variants(runs[0])
    named = [i for text in args.variant or () for i in variants.find(text)]
    named += [i for policy in args.policy or () for i in variants.choose([policy], references=False)]
    if len(named) != 2 or named[0] == named[1]:
        raise UserError(
            f"compare in one run needs exactly two variants, these options name {len(set(named))}; "
            "give --variant twice, or two folders"
        )
    first, second = named
    look = style.looks([variants.policies[second]], [variants.labels[second]], args.theme)
    return [(first, second)], look, f"difference: {variants.labels[second]} minus {variants.labels[first]}"


def _two_runs(runs, args):
    """Pairs for two runs: every shared variant, second run minus first."""
    one, two = (select.Variants(r) for r in runs)
    shared = [i for i in one.choose(args.policy, args.variant, references=False) if one.specs[i] in two.specs]
    options.require(
        shared, "the two runs share none of the chosen variants (a variant is the same when its whole spec is)"
    )
    looks = style.looks([one.policies[i] for i in shared], [one.labels[i] for i in shared], args.theme)
    return (
        [(i, two.specs.index(one.specs[i])) for i in shared],
        looks,
        f"difference: {runs[1].folder} minus {runs[0].folder}",
    )


def _panel(page, ax, runs, metric, pairs, looks, args):
    """Draws the differences of one metric; returns (smallest x, largest x, what was resampled)."""
    unit, direction = select.metric_info(runs[0], metric)
    ends, tops, resampled = [], [], ""
    for (first, second), look in zip(pairs, looks):
        keyed = _cells(runs[0], metric, first, args), _cells(runs[-1], metric, second, args)
        x, differences, resampled_here = _paired(*keyed)
        if not len(x):
            continue
        mean, low, high = mean_interval(differences, args.seed)
        resampled = resampled_here or resampled
        ax.plot(x, mean, **look.line(args.theme))
        if np.isfinite(low).any():
            ax.fill_between(
                x, low, high, color=look.color, alpha=0.18 if len(pairs) < 5 else 0.08, linewidth=0, zorder=1.5
            )
        ends += [x.min(), x.max()]
        tops += [np.nan_to_num(low), np.nan_to_num(high), mean[np.isfinite(mean)]]
    if not ends:
        raise UserError(f"no cell of {metric} stands on both sides (same trace, layer, KV head and budget)")
    ax.axhline(0, color=page.theme["faint"], linewidth=0.9, zorder=1)
    axes.y_axis(ax, np.concatenate([[0.0], *tops]), metric, allow_log=False)
    page.y_label(ax, f"Δ {style.axis_label(metric, unit)}")
    page.panel_note(
        ax,
        f"{'below' if direction == 'lower' else 'above'} zero: "
        + ("the second is better" if len(runs) == 1 else "the second run is better"),
    )
    return min(ends), max(ends), resampled


def _cells(run, metric, variant, args):
    """{(trace, layer, head, budget): (x, value)} of one variant, below the whole prompt."""
    prompts = np.asarray(run.trace_table["prompt"], float)
    keys = pool.trace_keys(run.trace_table)
    wanted = np.isin(run.column("rows", "layer"), select.layers(run, args.layer))
    budget, trace = run.column("rows", "budget_tokens"), run.column("rows", "trace")
    rows = np.flatnonzero(
        wanted
        & (run.column("rows", "variant") == variant)
        & (budget < prompts[trace])
        & np.isfinite(run.column("rows", metric))
    )
    x = budget[rows] / prompts[trace[rows]] if args.x == "fraction" else budget[rows].astype(float)
    texts = run.budgets[run.column("rows", "budget_request")[rows]]
    return {
        (keys[t], int(layer), int(head), str(text), int(b)): (float(at), float(value))
        for t, layer, head, text, b, at, value in zip(
            trace[rows],
            run.column("rows", "layer")[rows],
            run.column("rows", "kv_head")[rows],
            texts,
            budget[rows],
            x,
            run.column("rows", metric)[rows],
        )
    }


def _paired(first, second):
    """(x, differences [unit, point], what the units are) of the cells that stand in both."""
    shared = [k for k in first if k in second]
    traces = sorted({k[0] for k in shared})
    by_trace = len(traces) > 1
    units = {u: i for i, u in enumerate(traces if by_trace else sorted({k[1:3] for k in shared}))}
    requests = {(k[0], k[3]): set() for k in shared}
    for k in shared:
        requests[(k[0], k[3])].add(k[4])
    whole = all(len(v) == 1 for v in requests.values())
    points = {p: i for i, p in enumerate(dict.fromkeys(k[3] if whole else k[4] for k in shared))}
    total, count, x_total, x_count = (np.zeros((len(units), len(points))) for _ in range(4))
    for k in shared:
        at = units[k[0] if by_trace else k[1:3]], points[k[3] if whole else k[4]]
        total[at] += second[k][1] - first[k][1]
        x_total[at] += first[k][0]
        count[at] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = np.where(count > 0, total / count, np.nan)
    x = x_total.sum(0) / np.maximum(count.sum(0), 1)
    order = np.argsort(x, kind="stable")
    name = f"{len(units)} " + ("traces" if by_trace else "(layer, KV head) pairs")
    return x[order], differences[:, order], name if len(units) > 1 else ""
