"""Which cells are judged: by policy, variant, budget, or the best few by a metric of the replay."""

import math

from ..errors import RecordError
from .kept import Cell, Replay


def choose(replay: Replay, policies: list[str], variants: list[str], budgets: list[str], top: int | None, by: str) -> list[Cell]:
    """The chosen cells in the order of kept.h5. Empty lists choose all; a name that chooses nothing is refused."""
    cells = replay.cells
    cells = _keep(cells, policies, "--policies", lambda cell, name: cell.policy == name, replay)
    cells = _keep(cells, variants, "--variant", lambda cell, spec: covers(spec, cell.variant), replay)
    cells = _keep(cells, budgets, "--budgets", lambda cell, budget: budget in (cell.request, str(cell.budget_tokens)), replay)
    return _best(replay, cells, top, by) if top else cells


def _keep(cells: list[Cell], wanted: list[str], option: str, fits, replay: Replay) -> list[Cell]:
    if not wanted:
        return cells
    for one in wanted:
        if not any(fits(cell, one) for cell in cells):
            reason = next((f": {why}" for variant, why in replay.left_out.items() if _parts(variant)[0] == _parts(one)[0]), "")
            raise RecordError(f"{option} {one}: no cell of kept.h5 that can be judged fits{reason}")
    return [cell for cell in cells if any(fits(cell, one) for one in wanted)]


def left_out(replay: Replay, policies: list[str], variants: list[str]) -> dict[str, str]:
    """Those of the variants left out that such a choice would have taken, and why."""
    return {variant: reason for variant, reason in replay.left_out.items()
            if (not policies or _parts(variant)[0] in policies) and (not variants or any(covers(spec, variant) for spec in variants))}


def covers(spec: str, variant: str) -> bool:
    """Whether a variant's full spec has the policy and every parameter of `spec`, e.g. snapkv(window=32)."""
    name, given = _parts(spec)
    policy, known = _parts(variant)
    return name == policy and set(given) <= set(known)


def _parts(spec: str) -> tuple[str, list[str]]:
    name, _, rest = spec.strip().partition("(")
    parts, depth, start = [], 0, 0
    inner = rest[: rest.rfind(")")] if ")" in rest else rest
    for i, letter in enumerate(inner):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(inner[start:i])
            start = i + 1
    return name.strip(), [part.strip() for part in [*parts, inner[start:]] if part.strip()]


def _best(replay: Replay, cells: list[Cell], top: int, by: str) -> list[Cell]:
    """Per requested budget the `top` variants with the best mean of the metric over traces; oracles cannot be used, so they do not count,
    nor do variants that lack some of the traces: their means are over other prompts."""
    sign = -1.0 if replay.direction(by) == "higher" else 1.0
    figures: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        if _counts(cell):
            figures.setdefault(cell.request, {}).setdefault(cell.variant, []).append(replay.figure(cell, by))
    best = set()
    for request, variants in figures.items():
        traces = len({cell.trace for cell in cells if cell.request == request})
        mean = {variant: sign * sum(values) / len(values) for variant, values in variants.items() if len(values) == traces}
        ranked = sorted((variant for variant in mean if not math.isnan(mean[variant])), key=lambda variant: mean[variant])
        best.update((request, variant) for variant in ranked[:top])
    return [cell for cell in cells if (cell.request, cell.variant) in best]


def usual_metric(replay: Replay) -> str:
    """What --top goes by when nothing is said: predicted_kl where every trace has some, else output_error."""
    traces = {cell.trace for cell in replay.cells if _counts(cell)}
    defined = {cell.trace for cell in replay.cells if _counts(cell) and not math.isnan(replay.figure(cell, "predicted_kl"))} if replay.has("predicted_kl") else set()
    return "predicted_kl" if traces and defined == traces else "output_error"


def _counts(cell: Cell) -> bool:
    return not cell.oracle and cell.policy != "full"
