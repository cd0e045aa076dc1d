"""The tables and the figure of the fidelity study: the tuning and the reporting half apart."""

import argparse
import dataclasses
import os

import matplotlib
import numpy as np

from . import fidelity, fidelity_text, output, pool, style
from .commands import fidelity as command

GOAL_MEAN, GOAL_EACH = 0.95, 0.85
HALVES = ("tuning", "reporting")
_DRAWN = ("predicted_kl", "projected_sum", "predicted_kl_layers", "output_error", "attention_recall", "miss_rate")
_FITTED = ("residual_error", "predicted_kl_layers")


def study(out, prompts, planned, theme):
    """Text of all tables for finished prompts; writes <half>.csv, <half>-missed.csv and fidelity.png into `out`."""
    lines, judgements = [], {}
    for half in HALVES:
        folders = [os.path.join(out, "runs", p.name) for p in prompts if p.half == half]
        if not folders:
            continue
        source = pool.open_all(folders)
        judgements[half] = fidelity.gather(source, folders)
        kinds = ", ".join(p.name for p in prompts if p.half == half)
        lines += ["", f"== the {half} half: {kinds}", ""]
        lines += command.tables(source, judgements[half], 5, 0, os.path.join(out, half))
        if half == "reporting":
            lines += ["", *_goals(judgements[half])]
            lines += ["", *_harder(fidelity.gather(source, folders, references=False))]
        if half == "reporting" or len(prompts) == 1:
            _draw(os.path.join(out, "fidelity.png"), source, judgements[half], theme)
    if len(judgements) == 2:
        lines += ["", *_fit(judgements["tuning"], judgements["reporting"])]
    if len(prompts) < planned:
        lines += ["", f"note: {len(prompts)} of {planned} prompts are finished; the same command continues"]
    return "\n".join([*lines[1:], "", os.path.join(out, "fidelity.png")])


def _draw(path, source, judgement, theme):
    args = argparse.Namespace(theme=theme, trace=None, seed=0, title=None)
    shown = {name: values for name, values in judgement.predictors.items() if name in _DRAWN}
    judgement = dataclasses.replace(judgement, predictors=shown or judgement.predictors)
    with matplotlib.rc_context({**style.rc(theme), "savefig.dpi": 100}):
        output.write(command.draw(source, judgement, args), path, "png")


def _goals(judgement):
    """How far predicted_kl is from the goal."""
    if "predicted_kl" not in judgement.predictors:
        return ["predicted_kl is undefined"]
    found = fidelity.correlation(judgement, "predicted_kl")
    worst = int(np.nanargmin(found.per_trace)) if np.isfinite(found.per_trace).any() else 0
    verdict = lambda value, goal: "reached" if value >= goal else f"short by {goal - value:.2f}"  # noqa: E731
    return [
        f"goal on the mean over prompts {GOAL_MEAN}: predicted_kl {fidelity_text.number(found.mean)}, {verdict(found.mean, GOAL_MEAN)}",
        f"goal on every prompt {GOAL_EACH}: predicted_kl at least {fidelity_text.number(found.per_trace[worst])} "
        f"({judgement.traces[worst]}), {verdict(found.per_trace[worst], GOAL_EACH)}",
    ]


def _harder(judgement):
    """Correlations without what makes order easy; `judgement` is without oracles and random, which lie at the ends."""
    shown = [p for p in ("predicted_kl", "projected_sum", "output_error") if p in judgement.predictors]
    budgets = list(dict.fromkeys(budget for _, budget in judgement.points))
    rows = [["without oracles and random", "all budgets", *(f"at {b} alone" for b in budgets)]]
    for name in shown:
        parts = [judgement, *(_at_budget(judgement, b) for b in budgets)]
        rows.append([name, *(fidelity_text.number(fidelity.correlation(part, name).mean) for part in parts)])
    return fidelity_text.aligned(rows)


def _at_budget(judgement, budget):
    at = [i for i, (_, b) in enumerate(judgement.points) if b == budget]
    return dataclasses.replace(
        judgement,
        points=[judgement.points[i] for i in at],
        kl=judgement.kl[:, at],
        predictors={name: values[:, at] for name, values in judgement.predictors.items()},
    )


def _fit(tuning, reporting):
    """What least squares would make of two predictors: exponents from the tuning half, their worth on the other."""
    if any(name not in half.predictors for name in _FITTED for half in (tuning, reporting)):
        return ["no fit: the recordings lack sensitivities or output projections"]
    design, kl = _logs(tuning)
    if len(kl) <= len(_FITTED) + 1:
        return ["no fit: too few cells"]
    (constant, *powers), *_ = np.linalg.lstsq(design, kl, rcond=None)
    tested, truth = _logs(reporting)
    terms = " ".join(f"{name}^{power:.2f}" for name, power in zip(_FITTED, powers))
    rho = fidelity.spearman(tested @ [constant, *powers], truth)
    return [
        f"least squares on the tuning half, log of means over prompts: KL = {np.exp(constant):.3g} {terms}; "
        f"on the reporting half its rank correlation is {fidelity_text.number(rho)}"
    ]


def _logs(half):
    """(design matrix [cells, 1 + predictors], log KL) over cells that all prompts have and that are above zero."""
    columns = [half.kl.mean(0), *(half.predictors[name].mean(0) for name in _FITTED)]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(columns)
    kl, *rest = logs[:, np.isfinite(logs).all(0)]
    return np.stack([np.ones(len(kl)), *rest], 1), kl
