"""Reads the CSV files of `kvsim pages`, and gives every page policy and its guarded form one look."""

import csv
import os
import re
from collections import defaultdict

from .colors import MARKERS, PALETTE, shades, themed
from .errors import UserError, unknown
from .specs import Spec, parse, short_labels
from .style import THEMES, Look

_FIXED = ("belady", "lru", "fifo", "blindoracle", "follow_scores", "marker", "sieve", "s3_fifo", "random", "lfu")
_DASHES = {  # by "is it guarded": solid and dotted, or dashed
    False: ("-", (0, (1.3, 1.1)), (0, (9, 1.2, 1.3, 1.2)), (0, (1.3, 2.6))),
    True: ((0, (4.5, 1.3)), (0, (4.5, 1.2, 1.1, 1.2)), (0, (2.6, 1.1)), (0, (4.5, 1.2, 1.1, 1.2, 1.1, 1.2))),
}
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


def _inner(variant):
    """The policy that decides, with its parameters, as text: the variant itself, or what Guard follows."""
    spec = parse(variant)
    return str(spec.values.get("base", Spec("blindoracle", {})) if spec.name == "guard" else spec)


def looks(variants, theme):
    """{variant: Look}, all different: hue and marker belong to the base policy, guarded forms are dashed and hollow.

    Every thirteen policies the hues come again, with other markers and dashes. Predictors and parameters of one policy are
    shades of its hue, the same with Guard and without; what then still looks alike changes dashes and markers.
    """
    bases = [b for b in dict.fromkeys(base_of(v)[0] for v in variants) if b != "belady"]
    order = [b for b in _FIXED if b in bases] + sorted(b for b in bases if b not in _FIXED) + ["belady"]
    inner = defaultdict(dict)
    for variant in variants:
        inner[base_of(variant)[0]].setdefault(_inner(variant))
    shade = {}
    for i, base in enumerate(order):
        hues = shades(themed(PALETTE[i % len(PALETTE)], theme), max(1, len(inner[base])), theme)
        shade.update({(base, text): hue for text, hue in zip(inner[base], hues)})
    out, used = {}, set()
    for variant, label in zip(variants, short_labels(variants)):
        base, guarded = base_of(variant)
        if base == "belady" and not guarded:
            out[variant] = Look("belady (the optimum)", THEMES[theme]["faint"], (0, (6, 1.8)), None, False, True)
            continue
        cycle = order.index(base) // len(PALETTE)
        for n in range(len(MARKERS) * len(_DASHES[guarded])):
            dashes = _DASHES[guarded][(cycle + n) % len(_DASHES[guarded])]
            marker = MARKERS[(order.index(base) + 5 * cycle + 3 * (n // len(_DASHES[guarded]))) % len(MARKERS)]
            look = Look(label, shade[base, _inner(variant)], dashes, marker, guarded, False)
            if key(look) not in used:
                break
        used.add(key(look))
        out[variant] = look
    return out


def key(look):
    """What is seen of a look: two lines of equal keys cannot be told apart."""
    return look.color, look.dashes, look.marker, look.hollow


def choose(rows, wanted):
    """Rows whose variant contains one of the wanted texts; all where nothing is wanted."""
    if not wanted:
        return rows
    kept = [r for r in rows if any(w in r["variant"] for w in wanted)]
    if not kept:
        raise UserError(f"no variant contains {' or '.join(wanted)}; there are: " + ", ".join(sorted({r["variant"] for r in rows})))
    return kept
