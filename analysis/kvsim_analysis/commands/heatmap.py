"""Draws a metric over layers and KV heads: one map per variant at one budget, all on one colour scale.

With several traces a map is their mean; traces of different shapes need --trace.
"""

import textwrap

import numpy as np
from matplotlib.ticker import MaxNLocator

from .. import options, output, pool, select, style
from ..errors import UserError
from ..page import Page

NAME = "heatmap"
SUMMARY = "a metric over layers and KV heads, per variant"
EXAMPLES = """examples:
  kvsim-plot heatmap runs/main                                   every policy, at about an eighth of the prompt
  kvsim-plot heatmap runs/main --budget 128 --metric miss_rate
  kvsim-plot heatmap runs/main --budget 10% --variant 'snapkv(window=32)' --variant ada --variant oracle_static
"""
MOST = 12  # maps on one page unless the user names more


def add_arguments(parser):
    options.add_folders(parser)
    parser.add_argument(
        "--metric", "--y", default="output_error", metavar="METRIC", help="what is mapped (default: output_error)"
    )
    parser.add_argument(
        "--budget",
        metavar="B",
        help="tokens, or a percentage of the run such as 10%% (default: near an eighth of the prompt)",
    )
    parser.add_argument("--trace", metavar="NAME", help="one trace instead of the mean over all")
    options.add_variants(parser, references=False)
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folders[0], NAME, lambda: draw(pool.open_all(args.folders), args))


def draw(source, args):
    """The figure for parsed options."""
    unit, direction = select.metric_info(source, args.metric)
    if args.metric not in source.column_names["rows"]:
        raise UserError(f"{args.metric} has no value per KV head, so there is no map of it")
    variants = select.Variants(source)
    chosen = variants.choose(args.policy, args.variant, references=False)
    label, mask = select.budget(source, args.budget)
    maps = _maps(source, args, chosen, mask)
    options.require(maps, f"{args.metric} is undefined at budget {label} for the chosen variants")
    left_out = 0
    if not args.policy and not args.variant:
        left_out = max(0, len(maps) - MOST)
        maps = dict(list(maps.items())[:MOST])
    layers, heads = next(iter(maps.values())).shape
    size = (min(2.6, max(1.25, 0.3 * heads)), min(4.2, max(1.3, 0.16 * layers)))
    columns = min(len(maps), 6 if size[0] < 1.5 else 4)
    titles = {i: textwrap.wrap(variants.labels[i], int((size[0] + 0.36) * 14)) for i in maps}
    page = Page(
        len(maps),
        args.theme,
        columns=columns,
        size=size,
        gap=0.42,
        row_gap=0.08,
        right=1.05,
        header=0.1 + 0.145 * max(len(t) for t in titles.values()),
    )
    low, high = _scale(maps.values())
    drawn = None
    for ax, (i, values) in zip(page.axes, maps.items()):
        drawn = ax.imshow(
            values,
            aspect="auto",
            cmap="viridis" if (direction == "higher") == (args.theme == "light") else "viridis_r",
            vmin=low,
            vmax=high,
            origin="upper",
            interpolation="nearest",
        )
        ax.grid(False)
        ax.set_title("\n".join(titles[i]), fontsize=8, loc="left", pad=4)
        ax.set_xlabel("KV head")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        _layer_ticks(ax, source)
    for k, ax in enumerate(page.axes):
        if k % columns == 0:
            ax.set_ylabel("layer")
    traces = 1 if args.trace else len(source.trace_names)
    page.notes(
        options.lengths_of(source),
        f"budget {label}",
        "mean over the decode steps and query heads of a KV head"
        + (f", and over {traces} traces" if traces > 1 else ""),
        f"{left_out} more variants are not shown, choose with --variant" if left_out else "",
        "grey: undefined" if any(np.isnan(m).any() for m in maps.values()) else "",
    )
    page.title(options.title_of(source, args.title))
    figure = page.finish()
    _colorbar(page, drawn, f"{style.axis_label(args.metric, unit)}\n({direction} is better)")
    return figure


def _maps(source, args, chosen, mask):
    """{variant: [layer, KV head]} of means over traces; variants without any value are left out."""
    trace = options.one_trace(source, args.trace)
    shapes = {
        (int(a), int(b)) for a, b in zip(source.trace_table.get("layers", [0]), source.trace_table.get("kv_heads", [0]))
    }
    if trace is None and len(shapes) > 1:
        raise UserError(
            f"the traces have different shapes; name one with --trace: {', '.join(map(str, source.trace_names))}"
        )
    if trace is not None:
        mask = mask & (source.column("rows", "trace") == trace)
    layer_names, layer = np.unique(source.column("rows", "layer"), return_inverse=True)
    head = source.column("rows", "kv_head")
    values = source.column("rows", args.metric)
    variant = source.column("rows", "variant")
    out = {}
    shape = (len(layer_names), int(head[mask].max()) + 1 if mask.any() else 1)
    for i in chosen:
        rows = mask & (variant == i) & np.isfinite(values)
        if not rows.any():
            continue
        at = np.ravel_multi_index((layer.reshape(-1)[rows], head[rows]), shape)
        count = np.bincount(at, minlength=shape[0] * shape[1])
        total = np.bincount(at, values[rows], shape[0] * shape[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            out[i] = np.where(count > 0, total / count, np.nan).reshape(shape)
    return out


def _scale(maps):
    values = np.concatenate([m[np.isfinite(m)] for m in maps])
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _layer_ticks(ax, source):
    """Labels the rows with the layers' own numbers, as many as can be read."""
    names = np.unique(source.column("rows", "layer"))
    step = -(-len(names) // 12)
    ax.set_yticks(range(0, len(names), step), [str(int(n)) for n in names[::step]])
    ax.set_facecolor("#8a8a8a")


def _colorbar(page, drawn, label):
    """A colour bar in the right margin, beside the first row of maps."""
    box = [page.axes[k].get_position() for k in (0, min(page.columns, len(page.axes)) - 1)]
    bar = page.figure.add_axes([box[1].x1 + 0.16 / page.width, box[0].y0, 0.12 / page.width, box[0].height])
    page.figure.colorbar(drawn, cax=bar)
    bar.grid(False)
    bar.yaxis.set_major_locator(MaxNLocator(5))
    bar.set_ylabel(label, fontsize=7.5)
    bar.spines[:].set_visible(False)
