"""Options that the subcommands share, and the sentences about a run that stand around its figures."""

import argparse

import numpy as np

from .errors import UserError
from .style import THEMES


def add_folders(parser):
    parser.add_argument(
        "folders",
        metavar="DIR",
        nargs="+",
        help="results folder of `kvsim run`; several are joined (more traces, more variants)",
    )


def add_output(parser, command):
    parser.add_argument(
        "-o", "--output", metavar="FILE", help=f"figure to write: .png, .svg or .pdf (default: DIR/{command}.png)"
    )
    parser.add_argument(
        "--theme", choices=sorted(THEMES, reverse=True), default="light", help="page colours (default: light)"
    )
    parser.add_argument(
        "--title", metavar="TEXT", help="line above the panels (default: model and traces; '' for none)"
    )


def add_variants(parser, references=True):
    parser.add_argument("--policy", action="append", metavar="NAME", help="draw only this policy (repeatable)")
    parser.add_argument(
        "--variant",
        action="append",
        metavar="SPEC",
        help="draw only the variants that agree with this: a label of the figure, a whole spec, or one "
        "with some parameters such as 'snapkv(window=32)' (repeatable)",
    )
    if references:
        parser.add_argument("--no-references", action="store_true", help="leave out full, oracles and random")


def add_layers(parser):
    parser.add_argument("--layer", type=whole_number, nargs="+", metavar="N", help="average over these layers only")


def add_seed(parser):
    parser.add_argument(
        "--seed", type=whole_number, default=0, help="seed of the bootstrap behind the intervals (default: 0)"
    )


def whole_number(text):
    """A non-negative integer."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def title_of(source, asked):
    """The heading of a figure: what the user asked for, or the model and its traces."""
    if asked is not None:
        return asked
    models = list(dict.fromkeys(str(m) for m in source.trace_table.get("model", ()) if m))
    names = [str(n) for n in source.trace_names]
    traces = names[0] if len(names) == 1 else f"{len(names)} traces"
    return ": ".join([", ".join(models[:3]), traces] if models else [traces])


def lengths_of(source):
    """ "prompt of 1184 tokens, 48 decode steps", with ranges over several traces."""

    def span(name):
        values = np.asarray(source.trace_table[name])
        return f"{values.min()}" if values.min() == values.max() else f"{values.min()}-{values.max()}"

    text = f"prompt of {span('prompt')} tokens"
    return text + (f", {span('decode')} decode steps" if "decode" in source.trace_table else "")


def averaged_over(source, layers=None):
    """What a mean in the figure is taken over."""
    if layers:
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, sorted(layers)))}"
        return f"KV heads of {where} and decode steps"
    return "layers, heads and decode steps"


def one_trace(source, name):
    """Index of the trace named, or None for all of them."""
    if name is None:
        return None
    names = [str(n) for n in source.trace_names]
    if name not in names:
        from .errors import unknown

        raise unknown("trace", name, names)
    return names.index(name)


def require(condition, message):
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)
