"""Tells whose queries a policy looks at, and how variants look where that is what tells them apart."""

from collections import defaultdict

from .colors import BLUE, GREEN, MAROON, OCHRE, ROSE, VIOLET, shades, themed
from .errors import UserError
from .specs import Spec, parse
from .style import Look

# Source -> (label, colour, marker), in the order of a legend.
SOURCES = {
    "window": ("window queries", BLUE, "o"),
    "pseudo": ("pseudo queries", ROSE, "s"),
    "union": ("window and pseudo queries", GREEN, "^"),
    "oracle": ("true decode queries", MAROON, "D"),
    "all": ("all prompt queries", OCHRE, "v"),
    "other": ("no queries", VIOLET, "X"),
}
_OF_POLICY = {
    "snapkv": "window",
    "pyramidkv": "window",
    "tova": "window",
    "laq": "pseudo",
    "laq_pp": "union",
    "h2o": "all",
    "observed_attention": "all",
}
_OF_PART = {
    "window": "window",
    "current": "window",
    "proxy": "window",
    "lookahead": "pseudo",
    "oracle": "oracle",
    "all": "all",
}
_DASHES = ((0, (4.5, 1.3)), (0, (1.3, 1.1)), (0, (4.5, 1.2, 1.1, 1.2)))


def source_of(spec):
    """A key of SOURCES for a spec's text; wrappers have the source of what they wrap."""
    try:
        return _source(parse(spec))
    except UserError:
        return "other"


def _source(spec):
    if not isinstance(spec, Spec):
        return _OF_POLICY.get(spec, "other")
    if _wrapped(spec):
        return _source(spec.values["score"])
    if spec.name == "compose":
        if _name(spec.values.get("base", "attention")) in ("position", "knorm", "keydiff"):
            return "other"
        parts = spec.values.get("query", "none")
        kinds = {_OF_PART.get(_name(p), "other") for p in (parts if isinstance(parts, list) else [parts])}
        if kinds == {"window", "pseudo"}:
            return "union"
        return kinds.pop() if len(kinds) == 1 else "other"
    return _OF_POLICY.get(spec.name, "other")


def _wrapped(spec):
    inner = spec.values.get("score")
    return isinstance(inner, Spec) and inner.name != "none"


def _name(part):
    return part.name if isinstance(part, Spec) else str(part)


def _part_text(part):
    if isinstance(part, list):
        return " + ".join(_part_text(p) for p in part)
    if isinstance(part, Spec):
        first = next(iter(part.values), None)
        number = part.values.get("length") or (part.values[first] if first and first.startswith("#") else None)
        return f"{part.name}({number})" if number else part.name
    return part


def looks(specs, labels, theme):
    """One Look per variant, coloured by its source: published policies solid, compose lines dashed."""
    members = defaultdict(list)
    for i, spec in enumerate(specs):
        members[source_of(spec)].append(i)
    out = [None] * len(specs)
    for source, indices in members.items():
        name, color, marker = SOURCES[source]
        published, composed = 0, 0
        for i, shade in zip(indices, shades(themed(color, theme), len(indices), theme)):
            if specs[i].startswith("compose("):
                dashes, label = _DASHES[composed % len(_DASHES)], _composed_label(specs[i], labels[i])
                composed += 1
            else:
                dashes, label = "-" if published == 0 else (0, (7, 1)), labels[i]
                published += 1
            out[i] = Look(f"{name}: {label}", shade, dashes, marker, specs[i].startswith("compose("), False)
    # Where two lines of a source would read alike, the labels of other figures tell them apart.
    for i, look in enumerate(out):
        if sum(o.label == look.label for o in out) > 1:
            out[i] = Look(f"{look.label} ({labels[i]})", look.color, look.dashes, look.marker, look.hollow, False)
    return out


def _composed_label(text, otherwise):
    spec = parse(text)
    if _wrapped(spec):
        return otherwise
    recent = spec.values.get("recent", "0")
    guarded = "nothing protected" if recent == "0" else f"last {recent} protected"
    return f"{_part_text(spec.values.get('query', ''))}, {guarded}"
