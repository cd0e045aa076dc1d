"""Draws predictors of a replay against the divergence that the real model then showed (kvsim-judge), one panel each.

A point is a variant at a budget, averaged over the prompts, or of one of them with --trace. Titles of the panels are rank correlations
with the true KL, 1 being the same order of policies. Printed, and written beside the figure as CSV, are the correlations per prompt and
on the mean over prompts, and which of the truly best variants a screen by each predictor would have missed.
"""

import os

import numpy as np

from .. import axes, fidelity, fidelity_text, options, output, pool, select, style
from ..errors import UserError, unknown
from ..page import Page
from ..style import Look

NAME = "fidelity"
SUMMARY = "predictors against the real model's divergence"
EXAMPLES = """examples:
  kvsim-judge runs/essay                                the model itself, with the kept sets of the replay
  kvsim-plot fidelity runs/essay
  kvsim-plot fidelity runs/essay runs/news runs/sums    several prompts: each by itself, and their means
  kvsim-plot fidelity runs/all --y predicted_kl output_error --best 3
  kvsim-plot fidelity runs/all --closed elsewhere.h5 -o fidelity.pdf
"""
_TAKEN = ("results", "summary", "layers", "closed")  # tables of a results folder, which ours must not replace
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def add_arguments(parser):
    options.add_folders(parser)
    parser.add_argument(
        "--closed",
        action="append",
        metavar="FILE",
        help="what kvsim-judge wrote (repeatable; default: closed.h5 in every DIR)",
    )
    parser.add_argument(
        "--y",
        nargs="+",
        metavar="METRIC",
        help="predictors (default: predicted_kl and its companions, errors, recall, consistency, misses)",
    )
    parser.add_argument("--trace", metavar="NAME", help="draw this prompt alone (default: means over the prompts)")
    parser.add_argument(
        "--best",
        type=options.whole_number,
        default=5,
        metavar="K",
        help="how many of the truly best a screen should find (default: 5; at most half)",
    )
    parser.add_argument("--no-references", action="store_true", help="leave out the oracles and random")
    options.add_seed(parser)
    options.add_output(parser, NAME)


def run(args):
    options.require(args.best > 0, "--best 0: write at least 1")
    stem = os.path.splitext(output.output_path(args.output, args.folders[0], NAME)[0])[0]
    name = os.path.basename(stem)
    options.require(
        name.lower() not in _TAKEN, f"-o {args.output}: the table beside it would replace {name}.csv; choose another name"
    )
    printed = []

    def drawn():
        source = pool.open_all(args.folders)
        judgement = fidelity.gather(source, args.folders, args.closed or (), args.y, not args.no_references)
        figure = draw(source, judgement, args)
        printed.extend(tables(source, judgement, args.best, args.seed, stem))
        return figure

    path = output.save(args, args.folders[0], NAME, drawn)
    return "\n".join([*printed, "", path])


def tables(source, judgement, best, seed, stem):
    """Lines of both tables; also written as `stem`.csv and `stem`-missed.csv."""
    variants = select.Variants(source)
    found = fidelity.correlations(judgement, seed)
    screens = fidelity.screens(judgement, best, set(variants.references))
    quarter = fidelity.screens(judgement, None, set(variants.references))
    _save(f"{stem}.csv", fidelity_text.correlation_csv(judgement, found))
    _save(f"{stem}-missed.csv", fidelity_text.screen_csv(dict.fromkeys([*screens, *quarter]), variants.specs))
    lines = fidelity_text.correlation_table(judgement, found) + fidelity_text.screen_table(
        screens, quarter, variants.labels
    )
    if judgement.unmatched:
        lines += ["", f"note: {judgement.unmatched} judged cells are not among these results"]
    return lines


def _save(path, text):
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def draw(source, judgement, args):
    """The figure: one panel per predictor."""
    shown = _traces_shown(judgement, args.trace)
    variants = select.Variants(source)
    chosen = sorted({v for v, _ in judgement.points}, key=lambda v: (v in variants.references, v))
    looks = dict(
        zip(
            chosen,
            style.looks([variants.policies[v] for v in chosen], [variants.labels[v] for v in chosen], args.theme),
        )
    )
    markers = {b: _MARKERS[i % len(_MARKERS)] for i, b in enumerate(dict.fromkeys(b for _, b in judgement.points))}
    with np.errstate(invalid="ignore"):
        kl = judgement.kl[shown].mean(0)
    options.require((kl > 0).any(), "no divergence above zero in what was judged; there is nothing to draw")
    page = Page(len(judgement.predictors), args.theme, columns=3, gap=0.72, row_gap=0.06)
    hidden = 0
    for ax, (name, values) in zip(page.axes, judgement.predictors.items()):
        with np.errstate(invalid="ignore"):
            mean = values[shown].mean(0)
        hidden = max(hidden, _panel(page, ax, name, mean, kl, judgement, source, (looks, markers)))
        page.panel_note(ax, _said(judgement, name, shown, args))
    _legends(page, looks, markers, variants)
    page.notes(
        f"means over {len(shown)} prompts" if len(shown) > 1 else f"prompt {judgement.traces[shown[0]]}",
        "KL: the model's next-token distribution with the full cache against that with the kept tokens, mean over decode steps",
        "rank correlation ρ, 1 = the same order of policies; brackets: 95% bootstrap interval over "
        + ("prompts" if len(judgement.traces) > 1 else "(policy, budget) cells"),
        f"{hidden} points at zero are not drawn" if hidden else "",
    )
    page.title(options.title_of(source, args.title))
    return page.finish()


def _traces_shown(judgement, name):
    if name is None:
        return list(range(len(judgement.traces)))
    if name not in judgement.traces:
        raise unknown("judged trace", name, judgement.traces)
    return [judgement.traces.index(name)]


def _panel(page, ax, name, mean, kl, judgement, source, styles):
    """Draws one predictor; returns how many points lie at zero, where a log axis cannot show them."""
    looks, markers = styles
    unit, direction = select.metric_info(source, name)
    missing = direction == "higher" and unit in ("fraction", "probability")
    x = 1 - mean if missing else mean
    log = bool(missing or direction == "lower")
    drawable = np.isfinite(x) & (kl > 0) & ((x > 0) | (not log))
    for i in np.flatnonzero(drawable):
        variant, budget = judgement.points[i]
        color, faint = looks[variant].color, looks[variant].reference
        ax.plot(
            x[i],
            kl[i],
            marker=markers[budget],
            color="none" if faint else color,
            markeredgecolor=color if faint else page.theme["page"],
            markersize=4.6,
            markeredgewidth=0.8 if faint else 0.4,
            linestyle="none",
            zorder=2 if faint else 3,
        )
    axes.log_axis(ax.yaxis, kl[drawable])
    if log:
        axes.log_axis(ax.xaxis, x[drawable])
    ax.set_xlabel(("1 − " if missing else "") + style.axis_label(name, unit))
    page.y_label(ax, "true KL [nats]")
    return int((np.isfinite(x) & np.isfinite(kl) & ~drawable).sum())


def _said(judgement, name, shown, args):
    c = fidelity.correlation(judgement, name, args.seed)
    if len(judgement.traces) > 1 and len(shown) == 1:
        return f"ρ = {fidelity_text.number(c.per_trace[shown[0]])}"
    text = f"ρ = {fidelity_text.number(c.mean)}" + (f" [{c.low:.2f}, {c.high:.2f}]" if np.isfinite(c.low) else "")
    if len(judgement.traces) > 1:
        defined = [r for r in c.per_trace if np.isfinite(r)]
        text += f", prompts {min(defined):.2f} to {max(defined):.2f}" if defined else ""
    return text


def _legends(page, looks, markers, variants):
    dots = lambda look: Look(look.label, look.color, "none", "o", look.reference, look.reference)  # noqa: E731
    page.legend([dots(look) for v, look in looks.items() if v not in variants.references])
    page.legend([dots(look) for v, look in looks.items() if v in variants.references], "references")
    faint = page.theme["faint"]
    page.legend(
        [
            Look(budget if budget.endswith("%") else f"{budget} tokens", faint, "none", m, False, False)
            for budget, m in markers.items()
        ],
        "budget",
    )
