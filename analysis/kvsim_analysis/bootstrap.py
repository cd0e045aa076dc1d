"""Means with bootstrap intervals; the resampled units are traces, or (layer, head) pairs within one trace."""

import numpy as np

RESAMPLES = 2000


def mean_interval(values, seed=0, level=0.95):
    """Mean and interval over the first axis of `values` [units, points]: (mean, low, high), each [points].

    Undefined values (NaN) are left out of every mean. With one unit the interval is NaN. All points are resampled
    together, so curves drawn from one call keep their shape. Percentile bootstrap (Efron, 1979).
    """
    values = np.asarray(values, float)
    present = np.isfinite(values)
    filled = np.where(present, values, 0.0)
    count = present.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, filled.sum(0) / count, np.nan)
    units = len(values)
    if units < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    draws = np.random.default_rng(seed).multinomial(units, np.full(units, 1.0 / units), size=RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (draws @ filled) / (draws @ present.astype(float))
    tail = 50 * (1 - level)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    several = count > 1
    if several.any():
        low[several], high[several] = np.nanpercentile(means[:, several], [tail, 100 - tail], axis=0)
    return mean, low, high
