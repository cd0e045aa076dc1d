"""Derives the budget curve that the policy `lu` reads (LU-KV, arXiv:2602.08585) from the results of other traces.

The curve says, for every percentage of the cache that is pruned, which share every KV head loses. It comes from measured error
curves: the error of every head at every budget of the run, averaged over the traces on a common axis of kept shares, brought
down to its lower convex hull. Tokens then go to the head whose next piece of hull takes most error away per token, until the
percentage is spent; heads keep their smallest share first, and the last piece is given in part, so that every row is exact.

Use results of a policy that gives every head the same budget, with many budgets, on traces other than those that `lu` is then
tried on:

  kvsim run train/*.h5 --policy 'expected_attention(epsilon=0.02)' --budget curve --out runs/train
  python -m kvsim_analysis.budget_curve runs/train --variant expected_attention -o curve.h5
  kvsim run test.h5 --policy 'lu(file=curve.h5)' --budget curve --out runs/lu
"""

import argparse
import os
import sys

import h5py
import numpy as np

from .errors import UserError
from .oracle_budgets import lower_hull
from .pool import open_all
from .select import Variants

ROWS = 99
_GRID = np.linspace(0.0, 1.0, 201)


def head_curves(source, variant, metric):
    """(layers, errors): the layers' numbers, and errors [layers, heads, shares] on the grid of kept shares.

    Below the smallest measured budget a curve goes on to 1 at nothing kept (or stays, where it is larger already); where
    everything is kept it is 0. Raises UserError where a head was measured at fewer than two budgets.
    """
    chosen = source.column("rows", "variant") == variant
    column = {
        name: np.asarray(source.column("rows", name))[chosen]
        for name in ("trace", "layer", "kv_head", "evicted", metric)
    }
    prompts = np.asarray(source.trace_table["prompt"], float)
    layers, heads = np.unique(column["layer"]), np.unique(column["kv_head"])
    errors = np.zeros((len(layers), len(heads), len(_GRID)))
    traces = np.unique(column["trace"])
    for trace in traces:
        for i, layer in enumerate(layers):
            for j, head in enumerate(heads):
                here = (column["trace"] == trace) & (column["layer"] == layer) & (column["kv_head"] == head)
                shares, first = np.unique(1 - column["evicted"][here] / prompts[trace], return_index=True)
                values = column[metric][here][first]
                if len(shares) < 2:
                    raise UserError(f"{source.path}: layer {layer} has {len(shares)} budgets of that variant, a curve needs many")
                if shares[0] > 0:
                    shares, values = np.r_[0.0, shares], np.r_[max(1.0, values[0]), values]
                if shares[-1] < 1:
                    shares, values = np.r_[shares, 1.0], np.r_[values, 0.0]
                errors[i, j] += np.interp(_GRID, shares, values) / len(traces)
    return layers, errors


def divide_shares(errors, kept):
    """The share that every unit keeps, [units], when the mean share is `kept`; errors [units, shares] on the grid."""
    shares = np.zeros(len(errors))
    left = kept * len(errors)
    pieces = []
    for unit, curve in enumerate(errors):
        hull = lower_hull(_GRID, curve)
        for a, b in zip(hull, hull[1:]):
            pieces.append(((curve[b] - curve[a]) / (_GRID[b] - _GRID[a]), unit, _GRID[b] - _GRID[a]))
    for _, unit, width in sorted(pieces, key=lambda p: p[:2]):  # stable: a unit's own pieces stay in their order
        given = min(width, left)
        shares[unit] += given
        left -= given
    # Heads whose error ends before the whole prompt take the rest evenly.
    while left > 1e-12:
        open_units = np.flatnonzero(shares < 1 - 1e-12)
        if not len(open_units):
            break
        given = min(left / len(open_units), float((1 - shares[open_units]).min()))
        shares[open_units] += given
        left -= given * len(open_units)
    return np.clip(shares, 0.0, 1.0)


def budget_curve(source, variant, metric="output_error"):
    """Pruned shares [99, layers, heads], float32, as `lu` reads them."""
    layers, errors = head_curves(source, variant, metric)
    flat = errors.reshape(-1, errors.shape[2])
    rows = [1 - divide_shares(flat, 1 - (p + 1) / 100) for p in range(ROWS)]
    return np.asarray(rows, np.float32).reshape(ROWS, len(layers), errors.shape[1])


def write_curve(path, curve, notes):
    """Writes /curve with `notes` as its attributes, whole or not at all."""
    partial = f"{path}.part"
    try:
        with h5py.File(partial, "w") as file:
            dataset = file.create_dataset("curve", data=curve)
            for name, value in notes.items():
                dataset.attrs[name] = value
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m kvsim_analysis.budget_curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="results folders of kvsim run")
    parser.add_argument("--variant", required=True, help="whose errors: a label or spec of the run")
    parser.add_argument("--metric", default="output_error", help="what is brought down (default: output_error)")
    parser.add_argument("-o", "--out", required=True, help="the HDF5 file to write")
    options = parser.parse_args(arguments)
    try:
        source = open_all(options.folders)
        variant = Variants(source).one(options.variant)
        curve = budget_curve(source, variant, options.metric)
        write_curve(options.out, curve, {"variant": str(source.specs[variant]), "metric": options.metric, "traces": len(source.trace_names)})
    except UserError as error:
        print(f"budget_curve: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
