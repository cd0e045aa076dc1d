"""How well the figures of a replay order policies as the real model does: true KL beside predictors, rank correlations, screens.

A point is a variant at a budget. Correlations are Spearman's, with ties sharing their mean rank, and with the sign turned for metrics where
more is better, so that 1 is a perfect order of the policies for every predictor.
"""

from dataclasses import dataclass

import numpy as np

from . import closed, pool, select
from .colors import REFERENCES
from .errors import UserError

# Shown when nobody chooses, as far as the results hold them.
PREDICTORS = (
    "predicted_kl",
    "residual_error",
    "projected_sum",
    "predicted_kl_layers",
    "predicted_kl_quadratic",
    "predicted_kl_saturated",
    "predicted_kl_linear",
    "projected_error",
    "output_error",
    "attention_recall",
    "set_consistency",
    "miss_rate",
)
RESAMPLES = 1000
_FEWEST = 3  # points that make a rank correlation


@dataclass
class Judgement:
    """Predictors and true KL, [trace, point] each, NaN where a trace lacks the cell. A point is (variant index, budget as asked for)."""

    traces: list
    points: list
    kl: np.ndarray
    predictors: dict
    higher: dict
    unmatched: int  # judged cells that the results do not hold


@dataclass(frozen=True)
class Correlation:
    """Of one predictor: per trace, on the means over traces, and an interval for the latter. `points` lie under the mean's figure."""

    predictor: str
    per_trace: tuple
    mean: float
    low: float
    high: float
    points: int


def gather(source, folders, closed_files=(), predictors=None, references=True):
    """The Judgement of results folders and the closed.h5 in them, or of the files named instead.

    Cells in which nothing was evicted are left out: both sides are zero there. Raises UserError where nothing was judged, where
    another recording was, and for a predictor that the results lack.
    """
    judged = _read_all(folders, closed_files)
    rows, indices = _rows(source, references)
    traces = pool.trace_keys(source.trace_table)
    values, unmatched = {}, 0
    for path, cell in judged:
        row = rows.get((_trace_index(source, traces, path, cell), cell.variant, cell.budget_tokens))
        unmatched += row is None
        if row is not None and row >= 0:
            values[row] = cell.kl
    if not values:
        raise UserError(
            f"{judged[0][0]}: no judged cell is one of the results in which something was evicted; judge this run again (kvsim-judge)"
        )
    return _tables(source, indices, values, _predictor_columns(source, predictors), unmatched)


def _read_all(folders, closed_files):
    paths = list(closed_files) or [path for path in map(closed.of_folder, folders) if path]
    if not paths:
        raise UserError(
            f"no closed.h5 in {', '.join(folders)}; let the real model judge the run first: kvsim-judge {folders[0]}"
        )
    judged = [(path, cell) for path in paths for cell in closed.read(path)]
    if not judged:
        raise UserError(f"{paths[0]} holds no judged cell")
    return judged


def _rows(source, references):
    """{(trace, spec, tokens): row of /summary}, -1 for cells that have no say; the first of two requests that mean one budget."""
    column = lambda name: source.column("summary", name)  # noqa: E731
    indices = {name: column(name) for name in ("trace", "variant", "budget_request", "budget_tokens")}
    policies = [str(p) for p in source.variant_table["policy"]]
    rows = {}
    for row, (trace, variant, tokens, evicted) in enumerate(
        zip(indices["trace"], indices["variant"], indices["budget_tokens"], column("evicted"))
    ):
        silent = policies[variant] == "full" or evicted == 0 or (not references and policies[variant] in REFERENCES)
        rows.setdefault((int(trace), str(source.specs[variant]), int(tokens)), -1 if silent else row)
    return rows, indices


def _trace_index(source, keys, path, cell):
    """The judged cell's trace among those of the results: by digest, else by name."""
    if cell.digest and cell.digest in keys:
        return keys.index(cell.digest)
    names = [str(n) for n in source.trace_names]
    if cell.trace not in names:
        return -1
    place = names.index(cell.trace)
    if cell.digest and not keys[place].startswith("name:"):
        raise UserError(
            f"{path}: the model judged another recording of {cell.trace} than the one replayed; run kvsim-judge again"
        )
    return place


def _predictor_columns(source, asked):
    names = list(dict.fromkeys(asked)) if asked else [p for p in PREDICTORS if select.in_summary(source, p)]
    if not names:
        raise UserError("the results hold none of the default predictors; choose with --y")
    return {name: select.summary_column(source, name, "mean") for name in names}


def _tables(source, indices, values, columns, unmatched):
    rows = sorted(values)
    traces = sorted({int(indices["trace"][r]) for r in rows})
    key = lambda r: (int(indices["variant"][r]), str(source.budgets[indices["budget_request"][r]]))  # noqa: E731
    points = list(dict.fromkeys(map(key, rows)))
    place = {point: i for i, point in enumerate(points)}
    at = [traces.index(int(indices["trace"][r])) for r in rows], [place[key(r)] for r in rows]

    def table(cells):
        filled = np.full((len(traces), len(points)), np.nan)
        filled[at] = cells
        return filled

    predictors = {
        name: table(np.asarray(source.column("summary", column), float)[rows]) for name, column in columns.items()
    }
    defined = {name: found for name, found in predictors.items() if np.isfinite(found).any()}
    if not defined:
        raise UserError(
            f"{', '.join(columns)}: undefined in every judged cell (predicted_kl needs kvsim-record --output-proj, predicted_kl_* --sensitivity 8)"
        )
    higher = {name: select.metric_info(source, name)[1] == "higher" for name in defined}
    return Judgement(
        [str(source.trace_names[t]) for t in traces],
        points,
        table([values[r] for r in rows]),
        defined,
        higher,
        unmatched,
    )


def ranks(values):
    """Ranks from 1 on, ties share their mean rank."""
    values = np.asarray(values, float)
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2.0)[inverse.reshape(-1)]


def spearman(a, b):
    """Rank correlation over the places where both are defined; NaN for fewer than three, or where one side is constant."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < _FEWEST:
        return float("nan")
    x, y = ranks(a[both]), ranks(b[both])
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")


def correlation(judgement, predictor, seed=0):
    """The Correlation of one predictor. The interval (95%, percentile bootstrap) resamples traces, or points where there is one trace."""
    sign = -1.0 if judgement.higher[predictor] else 1.0
    values = sign * judgement.predictors[predictor]
    per_trace = tuple(spearman(v, k) for v, k in zip(values, judgement.kl))
    # A mean over some traces beside means over all would compare prompts, not policies.
    whole = np.isfinite(values).all(0) & np.isfinite(judgement.kl).all(0)
    v, k = values[:, whole], judgement.kl[:, whole]
    random = np.random.default_rng(seed)
    several = len(judgement.traces) > 1
    units = len(judgement.traces) if several else v.shape[1]
    resampled = []
    for _ in range(RESAMPLES if units > 1 else 0):
        drawn = random.integers(units, size=units)
        vs, ks = (v[drawn], k[drawn]) if several else (v[:, drawn], k[:, drawn])
        resampled.append(spearman(vs.mean(0), ks.mean(0)))
    resampled = [r for r in resampled if np.isfinite(r)]
    low, high = np.percentile(resampled, [2.5, 97.5]) if resampled else (np.nan, np.nan)
    return Correlation(predictor, per_trace, spearman(v.mean(0), k.mean(0)), float(low), float(high), int(whole.sum()))


def correlations(judgement, seed=0):
    return [correlation(judgement, predictor, seed) for predictor in judgement.predictors]


@dataclass(frozen=True)
class Screen:
    """Of the `best` variants by true KL at one budget, those that are not among the first `best`, and the first twice `best`, by a predictor."""

    predictor: str
    budget: str
    variants: int
    best: int
    missed: tuple
    missed_double: tuple


def screens(judgement, best, silent=()):
    """Screens at every budget, on means over the traces; `best` None = the best quarter; never more than half. Variants in `silent` are not chosen from."""
    found = []
    for budget in dict.fromkeys(b for _, b in judgement.points):
        at = [i for i, (variant, b) in enumerate(judgement.points) if b == budget and variant not in silent]
        for predictor, table in judgement.predictors.items():
            values, kl = table[:, at], judgement.kl[:, at]
            whole = np.isfinite(values).all(0) & np.isfinite(kl).all(0)
            chosen = [judgement.points[i][0] for i, w in zip(at, whole) if w]
            if len(chosen) < 2:
                continue
            # More than half of them would be found by chance.
            count = min(best or -(-len(chosen) // 4), max(1, len(chosen) // 2))
            sign = -1.0 if judgement.higher[predictor] else 1.0
            truth = np.argsort(kl[:, whole].mean(0), kind="stable")[:count]
            order = np.argsort(sign * values[:, whole].mean(0), kind="stable")
            missed = [tuple(chosen[i] for i in truth if i not in order[:n]) for n in (count, 2 * count)]
            found.append(Screen(predictor, budget, len(chosen), count, *missed))
    return found
