"""Draws what a recording shows about attention over time, before any policy (from `kvsim trace stats --out DIR`).

Above, against the distance in decode steps: similarity of queries, overlap of their heaviest tokens, and how much of what a
query finds important was important before; one thin line per layer, the mean over layers in bold, chance dashed. Below: the
same per layer and query head, at one distance, and the attention on the first tokens.
"""

import os

import matplotlib
import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from .. import hdf5, options, output, style
from ..errors import UserError, unknown
from ..page import Page

NAME = "stats"
SUMMARY = "similarity of queries, persistence of tokens and sinks of a recording"
EXAMPLES = """examples:
  kvsim trace stats trace.h5 --out runs/stats
  kvsim-plot stats runs/stats
  kvsim-plot stats runs/stats --lag 16 --tokens 4 -o stats.pdf
"""
FORMAT = "kvsim-stats"
# Statistic over distances, its axis label, and the statistic that says what chance would give.
_LINES = (
    ("query_similarity", "cosine of two queries", None),
    ("top_overlap", "overlap of heaviest tokens", "top_overlap_chance"),
    ("persistence", "share important before", "important_share"),
)


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR", help="folder that `kvsim trace stats --out DIR` wrote")
    parser.add_argument("--trace", metavar="NAME", help="one trace, where there are several")
    parser.add_argument("--lag", type=options.whole_number, metavar="K", help="distance of the maps (default: the middle one)")
    parser.add_argument("--tokens", type=options.whole_number, metavar="N", help="first tokens of the map of sinks (default: 4, or the fewest)")
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folder, NAME, lambda: draw(Statistics(args.folder, args.trace), args))


class Statistics:
    """The rows of one trace of a stats.h5, as arrays over layers and query heads."""

    def __init__(self, folder, trace=None):
        path = os.path.join(folder, "stats.h5")
        if not os.path.isfile(path):
            raise UserError(f"no stats.h5 in {folder}; make it with: kvsim trace stats TRACE --out {folder}")
        with hdf5.open_file(path) as file:
            self.top = int(hdf5.check_format(file, path, FORMAT).get("top", 0))
            names = [str(n) for n in hdf5.read_column(file, "traces/name", path)]
            if trace is not None and trace not in names:
                raise unknown("trace", trace, names)
            if trace is None and len(names) > 1:
                raise UserError(f"{path} holds several traces; name one with --trace: {', '.join(names)}")
            at = names.index(trace) if trace is not None else 0
            self.trace = names[at]
            self.model = str(hdf5.read_column(file, "traces/model", path)[at])
            self.prompt = int(hdf5.read_column(file, "traces/prompt_len", path)[at])
            self.decode = int(hdf5.read_column(file, "traces/decode_len", path)[at])
            self.names = [str(n) for n in hdf5.read_column(file, "statistics/name", path)]
            rows = {n: hdf5.read_column(file, f"rows/{n}", path) for n in ("trace", "layer", "query_head", "statistic", "parameter", "mean")}
        mine = rows["trace"] == at
        self.rows = {n: c[mine] for n, c in rows.items() if n != "trace"}
        self.layers, self.layer_index = np.unique(self.rows["layer"], return_inverse=True)
        self.heads = int(self.rows["query_head"].max()) + 1 if mine.any() else 0

    def parameters(self, statistic):
        """Distances or token counts at which some head has a value, ascending."""
        rows = (self.rows["statistic"] == self.names.index(statistic)) & np.isfinite(self.rows["mean"])
        return np.unique(self.rows["parameter"][rows])

    def map(self, statistic, parameter):
        """[layer, query head], NaN where undefined."""
        rows = (self.rows["statistic"] == self.names.index(statistic)) & (self.rows["parameter"] == parameter)
        out = np.full((len(self.layers), self.heads), np.nan)
        out[self.layer_index.reshape(-1)[rows], self.rows["query_head"][rows]] = self.rows["mean"][rows]
        return out

    def by_layer(self, statistic, parameters):
        """[parameter, layer]: means over heads, and [parameter] over layers and heads."""
        maps = [self.map(statistic, p) for p in parameters]
        return np.array([_mean(m, 1) for m in maps]), np.array([_mean(m, None) for m in maps])


def _mean(values, axis):
    present = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(present, values, 0).sum(axis) / present.sum(axis)


def draw(source, args):
    """The figure for parsed options."""
    lags = source.parameters("query_similarity")
    options.require(len(lags), f"{source.trace} has too few decode steps to compare any two queries")
    lag = _one_of("lag", args.lag, lags, lags[len(lags) // 2])
    counts = source.parameters("sink_mass")
    options.require(len(counts), f"the statistics of {source.trace} hold no sink_mass")
    tokens = _one_of("tokens", args.tokens, counts, 4 if 4 in counts else counts[0])
    page = Page(6, args.theme, columns=3, size=(2.35, 1.95), row_gap=0.1, right=0.72, gap=0.62)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.92, max(2, len(source.layers))))
    for ax, (statistic, label, chance) in zip(page.axes, _LINES):
        _curves(page, ax, source, statistic, chance, colors, args.theme)
        page.y_label(ax, label)
    _layer_key(page, source, colors)
    maps = (
        (source.map("query_similarity", lag), f"cosine, {lag} steps apart"),
        (source.map("persistence_window", lag), f"important within {lag} steps before"),
        (source.map("sink_mass", tokens), "attention on the first token" if tokens == 1 else f"attention on the first {tokens} tokens"),
    )
    low = min([0.0] + [float(np.nanmin(m)) for m, _ in maps if np.isfinite(m).any()])
    for ax, (values, label) in zip(page.axes[3:], maps):
        drawn = _heatmap(page, ax, source, values, label, low)
    page.axes[3].set_ylabel("layer")
    page.notes(
        f"prompt of {source.prompt} tokens, {source.decode} decode steps; means over steps, in the upper row also over query heads",
        f"heaviest: {source.top} tokens" if source.top else "",
        "important: at least an even share of the attention",
        "the third curve asks one query that far before, the map below it any of the queries up to there",
    )
    page.title(args.title if args.title is not None else ": ".join(filter(None, [source.model, os.path.basename(source.trace)])))
    figure = page.finish()
    _colorbar(page, drawn)
    return figure


def _one_of(option, asked, there, default):
    if asked is not None and asked not in there:
        raise UserError(f"no --{option} {asked} in these statistics; there are: {', '.join(map(str, there))}")
    return int(default if asked is None else asked)


def _curves(page, ax, source, statistic, chance, colors, theme):
    lags = source.parameters(statistic)
    if not len(lags):
        page.panel_note(ax, "undefined: too few tokens or steps")
        return
    layers, mean = source.by_layer(statistic, lags)
    for values, color in zip(layers.T, colors):
        ax.plot(lags, values, color=color, linewidth=0.7, alpha=0.8, zorder=2)
    ink = style.THEMES[theme]["ink"]
    ax.plot(lags, mean, color=ink, linewidth=1.8, marker="o", markersize=3.2, zorder=4)
    if chance is not None:
        at = source.parameters(chance)
        expected = source.by_layer(chance, at)[1]
        if chance == "important_share":
            at, expected = lags, np.full(len(lags), expected[0])
        ax.plot(at, expected, color=style.THEMES[theme]["faint"], linewidth=1.0, linestyle=(0, (3, 1.6)), zorder=3)
        ax.text(at[-1], expected[-1], "chance", fontsize=6.8, color=style.THEMES[theme]["faint"], ha="right", va="bottom")
    low = min(0.0, float(np.nanmin(layers)))
    ax.set_ylim(low - 0.02 if low < 0 else 0, 1.02)
    ax.set_xscale("log", base=2)
    ax.set_xlim(lags[0] / 1.12, lags[-1] * 1.12)
    ticks = lags[:: -(-len(lags) // 9)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([str(int(t)) for t in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("distance [decode steps]")


def _layer_key(page, source, colors):
    """Names the colours of the first and the last layer inside the first panel."""
    ax = page.axes[0]
    ends = [(0, f"layer {source.layers[0]}"), (-1, f"layer {source.layers[-1]}")]
    lines = [matplotlib.lines.Line2D([], [], color=colors[i], linewidth=1.2, label=text) for i, text in ends[: len(source.layers)]]
    ink = page.theme["ink"]
    lines.append(matplotlib.lines.Line2D([], [], color=ink, linewidth=1.8, marker="o", markersize=3.2, label="mean"))
    ax.legend(handles=lines, loc="lower left", fontsize=6.8, handlelength=1.6, borderaxespad=0.3, labelspacing=0.25)


def _heatmap(page, ax, source, values, label, low):
    drawn = ax.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=1.0, interpolation="nearest")
    ax.grid(False)
    ax.set_facecolor("#8a8a8a")
    ax.set_xlabel("query head")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    step = -(-len(source.layers) // 8)
    ax.set_yticks(range(0, len(source.layers), step), [str(int(n)) for n in source.layers[::step]])
    page.panel_note(ax, label)
    return drawn


def _colorbar(page, drawn):
    """One scale for the three maps, beside the last of them."""
    box = page.axes[5].get_position()
    bar = page.figure.add_axes([box.x1 + 0.12 / page.width, box.y0, 0.1 / page.width, box.height])
    page.figure.colorbar(drawn, cax=bar)
    bar.grid(False)
    bar.yaxis.set_major_locator(MaxNLocator(5))
    bar.tick_params(labelsize=7)
    bar.spines[:].set_visible(False)
