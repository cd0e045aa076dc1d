"""The best division of a budget over heads or layers in hindsight: greedy by marginal gain over measured error curves.

Heads do not hear of each other in an open-loop replay, so a head's error at a budget is the same whatever the others keep, and
the best division follows from the heads' curves. Each curve is cut down to its lower convex hull; tokens then go, segment by
segment, to the head whose next segment takes most error away per token. Only measured budgets are given out and the total is
never exceeded, so what is reported can be had; a finer grid of budgets can only be better. On the hulls the greedy choice is
optimal up to the last segment (Fox, 1966).
"""

import numpy as np


def lower_hull(tokens, errors):
    """Indices of the points of the lower convex hull of a curve, from its first point to that of the least error."""
    hull = []
    for i in range(int(np.argmin(errors)) + 1):
        while len(hull) > 1 and _slope(tokens, errors, hull[-1], i) <= _slope(tokens, errors, hull[-2], hull[-1]):
            hull.pop()
        hull.append(i)
    return hull


def _slope(tokens, errors, a, b):
    return (errors[b] - errors[a]) / (tokens[b] - tokens[a])


def divide(tokens, curves, total):
    """The place on the budget axis that each unit gets, [units]: sum(tokens[places]) <= total.

    `tokens` [points] ascending are the measured budgets, `curves` [units, points] the errors there (less is better), `total`
    the tokens of all units together. Raises ValueError when the units cannot even have the smallest budget.
    """
    tokens, curves = np.asarray(tokens, np.int64), np.asarray(curves, float)
    places = np.zeros(len(curves), int)
    left = int(total) - int(tokens[0]) * len(curves)
    if left < 0:
        raise ValueError(f"{total} tokens are too few for {len(curves)} units of at least {tokens[0]}")
    segments = []
    for unit, errors in enumerate(curves):
        hull = lower_hull(tokens, errors)
        for a, b in zip(hull, hull[1:]):
            segments.append((_slope(tokens, errors, a, b), unit, a, b))
    # Steepest first; a unit's own segments come in their order, since hulls flatten.
    segments.sort(key=lambda s: (s[0], s[1], s[2]))
    stopped = set()
    for _, unit, a, b in segments:
        price = int(tokens[b] - tokens[a])
        if unit in stopped:
            continue
        if price > left:
            stopped.add(unit)  # its later segments start where this one ends
            continue
        places[unit] = b
        left -= price
    return _spend_rest(tokens, curves, places, left)


def _spend_rest(tokens, curves, places, left):
    """Single measured steps, off the hulls too, while some step takes error away and fits."""
    while True:
        best = None
        for unit, at in enumerate(places):
            fitting = np.flatnonzero(tokens[at + 1 :] - tokens[at] <= left) + at + 1
            for b in fitting:
                slope = _slope(tokens, curves[unit], at, b)
                if slope < 0 and (best is None or slope < best[0]):
                    best = slope, unit, b
        if best is None:
            return places
        _, unit, b = best
        left -= int(tokens[b] - tokens[places[unit]])
        places[unit] = b


def best_mean(tokens, curves, budget):
    """(mean error, mean tokens used) of the units when `budget` tokens per unit on average are divided between them.

    Never worse than the same budget for everybody, if that was measured.
    """
    curves = np.asarray(curves, float)
    units = np.arange(len(curves))
    places = divide(tokens, curves, budget * len(curves))
    even = int(np.searchsorted(tokens, budget, side="right")) - 1
    if curves[units, places].sum() > curves[:, even].sum():
        places = np.full(len(curves), even)
    return float(curves[units, places].mean()), float(np.asarray(tokens, float)[places].mean())
