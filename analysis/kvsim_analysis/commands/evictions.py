"""Draws what a decode-time policy evicted when: every token of prompt and answer against the decode steps.

On the left all tokens, on the right some of them with their texts. Colour is the share of the caches (of the chosen layers and
KV heads) that could read the token at the step; a token that was not written yet is grey. Needs kvsim run ... --save kept
"""

import os

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from .. import hdf5, options, output, select, style
from ..errors import UserError
from ..holding import Holding, evicts
from ..page import Page
from ..results import load

NAME = "evictions"
SUMMARY = "what a decode-time policy evicted when, token by token (needs `kvsim run --save kept`)"
EXAMPLES = """examples:
  kvsim run trace.h5 --policy decode:h2o --budget 128 --save kept --out runs/live
  kvsim-plot evictions runs/live --variant h2o --budget 128
  kvsim-plot evictions runs/live --variant h2o --budget 128 --layer 12 --kv-head 0 --from 300 --tokens 40
"""
MOST = 90  # tokens whose texts can be read on one page


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR", help="results folder of `kvsim run --save kept`")
    parser.add_argument("--variant", metavar="SPEC", help="the variant: a label, a whole spec, or one with some parameters (default: the first that evicts while decoding)")
    parser.add_argument("--budget", metavar="B", help="capacity in tokens, or a percentage of the run (default: near an eighth of the prompt)")
    parser.add_argument("--trace", metavar="NAME", help="one trace, where there are several")
    parser.add_argument("--kv-head", type=options.whole_number, metavar="N", help="one KV head instead of all")
    options.add_layers(parser)
    parser.add_argument("--from", type=options.whole_number, dest="first", metavar="P", help="first token on the right (default: where the caches differ most)")
    parser.add_argument("--tokens", type=options.whole_number, default=44, metavar="N", help=f"tokens on the right, at most {MOST} (default: 44)")
    parser.add_argument("--recording", metavar="FILE", help="the trace file with the texts (default: where the run found it)")
    options.add_output(parser, NAME)


def run(args):
    return output.save(args, args.folder, NAME, lambda: draw(load(args.folder), args))


def draw(source, args):
    """The figure for parsed options."""
    options.require(0 < args.tokens <= MOST, f"--tokens {args.tokens}: 1 to {MOST} can be read on a page")
    trace = options.one_trace(source, args.trace)
    if trace is None:
        options.require(len(source.trace_names) == 1, f"name one trace with --trace: {', '.join(map(str, source.trace_names))}")
        trace = 0
    heads = int(source.trace_table["kv_heads"][trace])
    options.require(args.kv_head is None or args.kv_head < heads, f"no KV head {args.kv_head} here; there are 0 to {heads - 1}")
    variant, label = _variant(source, args)
    budget = _budget(source, args, trace)
    held = Holding(source, variant, budget, trace, args.layer, args.kv_head)
    count = min(args.tokens, held.tokens)
    first = _busiest(held, count) if args.first is None else args.first
    options.require(first < held.tokens, f"--from {first}: the trace has {held.tokens} tokens")
    first = min(first, held.tokens - count)
    texts = _texts(source, trace, args.recording, held.tokens)

    page = Page(2, args.theme, columns=2, size=(3.05, max(2.6, 0.137 * count)), gap=1.25, right=0.62)
    whole, near = page.axes
    colors, late = _colors(args.theme)
    drawn = _image(whole, held, 0, held.tokens, colors, late)
    _image(near, held, first, count, colors, late)
    _overview_marks(page, whole, held, first, count)
    near.set_yticks(range(first, first + count), [f"{_shown(texts[p])}" if texts else str(p) for p in range(first, first + count)])
    near.tick_params(axis="y", labelsize=6.3, length=0, pad=2)
    _note(page, near, f"tokens {first} to {first + count - 1}")
    where = "all layers" if not args.layer else ("layer " if len(args.layer) == 1 else "layers ") + ", ".join(map(str, sorted(args.layer)))
    page.notes(
        f"capacity {budget} tokens per cache",
        options.lengths_of(source) if len(source.trace_names) == 1 else f"prompt of {held.prompt} tokens, {held.decode} decode steps",
        f"{held.caches} cache{'s' if held.caches > 1 else ''}: {where}, {'all KV heads' if args.kv_head is None else f'KV head {args.kv_head}'}",
        "grey: not written yet",
        "" if texts else "the recording's texts were not found, positions stand for them",
    )
    page.title(args.title if args.title is not None else label)
    figure = page.finish()
    if held.caches > 1:
        _colorbar(page, drawn)
    return figure


def _variant(source, args):
    variants = select.Variants(source)
    chosen = variants.choose(None, [args.variant] if args.variant else None, references=False)
    for i in chosen:
        if evicts(source, i):
            return i, variants.labels[i]
    named = f"'{args.variant}'" if args.variant else "these variants"
    raise UserError(f"nothing tells when {named} evicted; it takes a decode-time policy that drops tokens, and kvsim run ... --save kept")


def _budget(source, args, trace):
    """Capacity in tokens of the chosen budget for the trace."""
    label, mask = select.budget(source, args.budget)
    sizes = np.unique(source.column("rows", "budget_tokens")[mask & (source.column("rows", "trace") == trace)])
    options.require(len(sizes) == 1, f"budget {label} stands for several capacities")
    return int(sizes[0])


def _busiest(held, count):
    """Where `count` tokens in a row are held by some caches and not by others for longest; of a single cache, where most leave."""
    activity = (held.share * (1 - held.share)).sum(1) if held.caches > 1 else held.leaving().sum(1)
    return int(np.argmax(np.convolve(activity, np.ones(count), "valid")))


def _texts(source, trace, asked, tokens):
    path = asked or str(source.trace_table["path"][trace]) if "path" in source.trace_table else asked
    if not path or not os.path.isfile(path):
        options.require(asked is None, f"no such file: {asked}")
        return None
    with hdf5.open_file(path) as file:
        if "tokens/text" not in file:
            return None
        texts = [str(t) for t in hdf5.read_column(file, "tokens/text", path)]
    if len(texts) != tokens:
        raise UserError(f"{path} has {len(texts)} tokens, the run's trace has {tokens}; name the right file with --recording")
    return texts


def _shown(text, most=13):
    """A token's text on one line, in letters that the font has."""
    text = text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace("$", "\\$")
    text = "".join(c if c.isprintable() and ord(c) < 0x2E80 else "\u25a1" for c in text).strip() or "\u2423"
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _colors(theme):
    base = matplotlib.colormaps["Blues" if theme == "light" else "Blues_r"](np.linspace(0.0, 0.92, 256))
    if theme == "light":
        base[0] = matplotlib.colors.to_rgba(style.THEMES[theme]["page"])
    return ListedColormap(base), style.THEMES[theme]["grid"]


def _image(ax, held, first, count, colors, late):
    values = np.array(held.share[first : first + count])
    written = np.maximum(0, np.arange(first, first + count) - held.prompt)
    values[np.arange(held.decode)[None, :] < written[:, None]] = np.nan
    ax.set_facecolor(late)
    drawn = ax.imshow(np.ma.masked_invalid(values), cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest",
                      extent=(-0.5, held.decode - 0.5, first + count - 0.5, first - 0.5))
    ax.grid(False)
    ax.set_xlabel("decode step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    return drawn


def _overview_marks(page, ax, held, first, count):
    ax.set_ylabel("token")
    beside = ax.get_yaxis_transform()  # x in parts of the panel, y in tokens
    ax.axhline(held.prompt - 0.5, color=page.theme["faint"], linewidth=0.8, linestyle=(0, (4, 2)))
    ax.annotate("end of\nprompt", (1, held.prompt - 0.5), xycoords=beside, xytext=(8, 0), textcoords="offset points", ha="left", va="center",
                fontsize=6.3, color=page.theme["faint"])
    top, bottom = first - 0.5, first + count - 0.5
    ax.plot([1.008, 1.022, 1.022, 1.008], [top, top, bottom, bottom], transform=beside, clip_on=False, color=page.theme["ink"], linewidth=0.9)
    _note(page, ax, "all tokens; the bracket holds those on the right")


def _note(page, ax, text):
    """Small text over a panel of any height, at its left."""
    ax.annotate(text, (0, 1), xycoords="axes fraction", xytext=(0, 3.5), textcoords="offset points", fontsize=7, color=page.theme["faint"],
                ha="left", va="bottom")


def _colorbar(page, drawn):
    box = page.axes[1].get_position()
    bar = page.figure.add_axes([box.x1 + 0.1 / page.width, box.y0, 0.1 / page.width, box.height])
    page.figure.colorbar(drawn, cax=bar)
    bar.grid(False)
    bar.yaxis.set_major_locator(MaxNLocator(5))
    bar.tick_params(labelsize=6.8)
    bar.set_ylabel("share of caches that hold the token", fontsize=7.2)
    bar.spines[:].set_visible(False)
