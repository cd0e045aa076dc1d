"""Replaces one part of a composed policy by its oracle: what `analysis/studies/parts` runs."""

from .errors import UserError
from .specs import Spec, parse

_FOLDS = ("mean", "sum", "meanvar", "last", "max", "squares", "count", "visible")


def render(value):
    """The text of a parsed value."""
    if isinstance(value, list):
        return "[" + ",".join(render(v) for v in value) + "]"
    if isinstance(value, Spec):
        inside = ",".join(render(v) if k.startswith("#") else f"{k}={render(v)}" for k, v in value.values.items())
        return f"{value.name}({inside})" if inside else value.name
    return value


def with_parts(spec, **parts):
    """The spec with some values replaced; None takes one out."""
    values = {**spec.values, **parts}
    return Spec(spec.name, {k: v for k, v in values.items() if v is not None})


def oracle_variants(line, steps):
    """{part: spec text} for a compose line: "as it is", "uniform" (no budgets moved), and one per part that has an oracle.

    `steps` is the number of decode steps that the true queries come from. Parts that the line does not have are absent.
    """
    spec = parse(line)
    if spec.name != "compose":
        raise UserError(f"'{line}' is no compose(...) line; `kvsim help POLICY` shows that of a preset")
    uniform = with_parts(spec, heads=None, layers=None)
    out = {"as it is": render(spec), "uniform": render(uniform)}
    wraps = isinstance(spec.values.get("score"), Spec) and spec.values["score"].name != "none"
    attends = not wraps and render(spec.values.get("base", "attention")).split("(")[0] not in ("position", "knorm", "keydiff")
    if attends:
        truth = Spec("oracle", {"#0": str(steps)})
        if spec.values.get("query") != truth:
            out["queries"] = render(with_parts(spec, query=truth))
        reduced = _aware_of_outputs(spec.values.get("reduce", [*map(parse_value, ("mean", "avg(5)", "group(mean)"))]))
        if reduced is not None:
            out["values"] = render(with_parts(spec, reduce=reduced, value=None))
    unit = render(spec.values.get("unit", "kv"))
    if unit in ("kv", "query"):
        kept = {k: spec.values[k] for k in ("heads", "layers", "sinks", "recent", "forced") if k in spec.values}
        truth = Spec("oracle_output", {"unit": unit})
        out["queries and values"] = render(Spec("compose", {"score": truth, **kept}))
        out["truth, uniform"] = render(
            Spec("compose", {"score": truth, **{k: v for k, v in kept.items() if k not in ("heads", "layers")}})
        )
    return out


def parse_value(text):
    """A value as the spec parser reads it."""
    return next(iter(parse(f"x({text})").values.values()))


def _aware_of_outputs(reduce):
    """The reducers with CAOTE's term behind the one that joins the queries; None where nothing joins them, or it is there already."""
    kept = [r for r in reduce if not (isinstance(r, Spec) and r.name == "value")]
    for i, reducer in enumerate(kept):
        name = reducer.name if isinstance(reducer, Spec) else reducer
        if name in _FOLDS and not (name == "max" and isinstance(reducer, Spec)):
            aware = kept[: i + 1] + [Spec("value", {"#0": "caote"})] + kept[i + 1 :]
            return None if aware == reduce else aware
    return None
