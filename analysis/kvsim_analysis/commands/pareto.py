"""Draws a metric against the memory that a variant holds, and the frontier that no variant beats on both.

Every point is one variant at one budget. The frontier is over the policies only: oracles, full and random are shown
as references. With several traces the points are means over traces.
"""

import numpy as np

from .. import axes, curves, options, output, pool, select, style
from ..page import Page

NAME = "pareto"
SUMMARY = "error against memory, with the frontier"
EXAMPLES = """examples:
  kvsim-plot pareto runs/main
  kvsim-plot pareto runs/main --x resident_tokens --y miss_rate
  kvsim-plot pareto runs/main --policy ada --policy snapkv --list      also prints the points of the frontier
  kvsim-plot pareto runs/main --y set_consistency --stat p5 -o front.svg
"""


def add_arguments(parser):
    options.add_folders(parser)
    parser.add_argument(
        "--y", default="output_error", metavar="METRIC", help="metric to trade for memory (default: output_error)"
    )
    parser.add_argument(
        "--x",
        choices=curves.X_NAMES,
        metavar="NAME",
        help="resident_bytes, resident_tokens, resident_union_bytes, budget_tokens or fraction "
        "(default: resident_bytes where recorded, else resident_tokens)",
    )
    parser.add_argument(
        "--stat", default="mean", metavar="NAME", help="mean, p50, p95, p99, max; p5, p1, min (default: mean)"
    )
    parser.add_argument("--list", action="store_true", help="print the points of the frontier before the path")
    options.add_variants(parser)
    options.add_layers(parser)
    options.add_output(parser, NAME)


def run(args):
    listing = []

    def drawn():
        figure, listing[:] = draw(pool.open_all(args.folders), args)
        return figure

    path = output.save(args, args.folders[0], NAME, drawn)
    return "\n".join([*(listing if args.list else ()), path])


def frontier(x, y, lower_is_better):
    """Indices of the points that no other point beats in both directions, by ascending x (less memory is better)."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    cost = y if lower_is_better else -y
    best, kept = np.inf, []
    for i in np.lexsort((cost, x)):
        if np.isfinite(x[i]) and cost[i] < best:
            best = cost[i]
            kept.append(int(i))
    return kept


def draw(source, args):
    """(figure, lines that list the frontier) for parsed options."""
    unit, direction = select.metric_info(source, args.y)
    x = args.x or _default_x(source, args)
    variants = select.Variants(source)
    chosen = variants.choose(args.policy, args.variant, not args.no_references)
    data = curves.gather(source, args.y, chosen, x, args.stat, args.layer)
    drawn = [i for i in chosen if i in data.curves and variants.policies[i] != "full"]
    options.require(drawn, "nothing to draw but 'full', which has no budget")
    looks = dict(
        zip(
            chosen,
            style.looks([variants.policies[i] for i in chosen], [variants.labels[i] for i in chosen], args.theme),
        )
    )
    page = Page(1, args.theme, size=(6.3, 3.7))
    ax = page.axes[0]
    for i in drawn:
        curve, look = data.curves[i], looks[i]
        kwargs = look.line(args.theme, 0.7 if not look.reference else 1.2, 4.4)
        kwargs.update(alpha=1.0 if look.reference else 0.9)
        ax.plot(curve.x, curve.mean, **kwargs)
    real = [(i, p) for i in drawn if not looks[i].reference for p in range(len(data.curves[i].x))]
    front = [
        real[k]
        for k in frontier(
            [data.curves[i].x[p] for i, p in real], [data.curves[i].mean[p] for i, p in real], direction == "lower"
        )
    ]
    xs = np.concatenate([data.curves[i].x for i in drawn])
    xs = xs[np.isfinite(xs) & (xs > 0)]
    axes.log_x(ax, x, xs.min(), xs.max(), page.size[0])
    axes.y_axis(ax, np.concatenate([data.curves[i].mean for i in drawn]), args.y)
    if front:
        fx, fy = (np.array([getattr(data.curves[i], name)[p] for i, p in front]) for name in ("x", "mean"))
        ax.step(fx, fy, where="post", color=page.theme["ink"], linewidth=1.0, alpha=0.75, zorder=4)
        ax.scatter(fx, fy, s=62, facecolors="none", edgecolors=page.theme["ink"], linewidths=0.9, zorder=5)
    page.y_label(ax, style.axis_label(args.y, unit, args.stat))
    page.panel_note(ax, f"{direction} is better, and so is less memory")
    page.legend([looks[i] for i in drawn if not looks[i].reference])
    page.legend([looks[i] for i in drawn if looks[i].reference], "references")
    page.notes(
        options.lengths_of(source),
        "rings and steps: the frontier of the policies" if front else "",
        f"means over {data.traces} traces" if data.traces > 1 else "",
    )
    page.title(options.title_of(source, args.title))
    listing = [
        f"{_x_text(x, data.curves[i].x[p]):>10}  {data.curves[i].mean[p]:.6g}  {variants.labels[i]}  "
        f"budget {data.curves[i].budgets[p]:.0f}"
        for i, p in front
    ]
    return page.finish(), listing


def _default_x(source, args):
    columns = source.column_names["summary"]
    return "resident_bytes" if "resident_bytes_mean" in columns or "resident_bytes" in columns else "resident_tokens"


def _x_text(name, value):
    if "bytes" in name:
        return axes.bytes_text(value) if value < 1024 else f"{value / 1024:.1f} KiB"
    return f"{value:.4g}"
