"""Reads the CSV files of `kvsim pages`, and gives every page policy and its guarded form one look."""

import csv
import os
import re
from collections import defaultdict

from .colors import MARKERS, PALETTE
from .errors import UserError, unknown
from .specs import Spec, parse, short_labels
from .style import THEMES, Look

_FIXED = ("belady", "lru", "fifo", "blindoracle", "follow_scores", "marker", "sieve", "s3_fifo", "random", "lfu")
_NOISE = re.compile(r"noise=(normal|lognormal|flip)\((?:sigma=|p=)?([0-9.eE+-]+)\)")


def read(folder, name):
    """Rows of `folder/name` as dicts of text. UserError when the file is missing or empty."""
    path = os.path.join(folder, name)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        hint = {"phases.csv": "; run kvsim pages with --detail phases", "curves.csv": "; run kvsim pages with --curve"}
        raise UserError(f"cannot read {path}: {error.strerror}{hint.get(name, '')}") from error
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def number(text):
    """A float, or NaN where the field is empty."""
    return float(text) if text else float("nan")


def one_trace(rows, name):
    """The rows of one trace: the one named, or the only one."""
    names = list(dict.fromkeys(r["trace"] for r in rows))
    if name is None and len(names) > 1:
        raise UserError(f"there are {len(names)} traces; choose one with --trace: {', '.join(names)}")
    if name is not None and name not in names:
        raise unknown("trace", name, names)
    return [r for r in rows if r["trace"] == (name or names[0])]


def base_of(variant):
    """(name of the policy that decides, is it guarded)."""
    spec = parse(variant)
    if spec.name == "guard":
        base = spec.values.get("base", "blindoracle")
        return (base.name if isinstance(base, Spec) else str(base)), True
    return spec.name, False


def noise_of(variant):
    """(variant without its noise, kind of noise, amount); amount None where the variant has none."""
    found = _NOISE.search(variant)
    if not found:
        return variant, None, None
    return _NOISE.sub(f"noise={found.group(1)}", variant), found.group(1), float(found.group(2))


def looks(variants, theme):
    """{variant: Look}: hue and marker belong to the base policy, guarded forms are dashed and hollow."""
    bases = dict.fromkeys(base_of(v)[0] for v in variants)
    order = [b for b in _FIXED if b in bases] + sorted(b for b in bases if b not in _FIXED)
    hue = {b: PALETTE[i % len(PALETTE)] for i, b in enumerate(b for b in order if b != "belady")}
    marker = {b: MARKERS[i % len(MARKERS)] for i, b in enumerate(order)}
    seen = defaultdict(int)
    dashes = {False: ("-", (0, (1.3, 1.1))), True: ((0, (4.5, 1.3)), (0, (4.5, 1.2, 1.1, 1.2)))}
    out = {}
    for variant, label in zip(variants, short_labels(variants)):
        base, guarded = base_of(variant)
        if base == "belady" and not guarded:
            out[variant] = Look("belady (the optimum)", THEMES[theme]["faint"], (0, (6, 1.8)), None, False, True)
            continue
        style = dashes[guarded][seen[(base, guarded)] % 2]
        seen[(base, guarded)] += 1
        out[variant] = Look(label, hue[base] if base in hue else PALETTE[0], style, marker[base], guarded, False)
    return out


def choose(rows, wanted):
    """Rows whose variant contains one of the wanted texts; all where nothing is wanted."""
    if not wanted:
        return rows
    kept = [r for r in rows if any(w in r["variant"] for w in wanted)]
    if not kept:
        raise UserError(f"no variant contains {' or '.join(wanted)}; there are: " + ", ".join(sorted({r["variant"] for r in rows})))
    return kept
