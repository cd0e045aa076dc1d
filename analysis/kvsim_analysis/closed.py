"""Reads closed.h5: what the real model did with the kept sets of a replay (kvsim-judge)."""

import os
from dataclasses import dataclass

import h5py
import numpy as np

from . import hdf5
from .errors import UserError

FORMAT = "kvsim-closed"
_STEPS = ("kl", "top1_agree", "log_likelihood")
_NO_STEP = 255  # of top1_agree, beyond a shorter trace's end


@dataclass(frozen=True)
class Judged:
    """One judged cell: means over the decode steps. `digest` is its trace's, or "" where the file does not say."""

    trace: str
    digest: str
    variant: str
    budget_tokens: int
    kl: float
    top1_agreement: float


def of_folder(folder):
    """The closed.h5 of a results folder, or None where the model was not asked."""
    path = os.path.join(folder, "closed.h5")
    return path if os.path.isfile(path) else None


def read(path):
    """Every judged cell of the file. Raises UserError for what is missing, damaged or makes no sense."""
    if not os.path.isfile(path):
        raise UserError(f"no such file: {path}; kvsim-judge writes it")
    with hdf5.open_file(path) as file:
        hdf5.check_format(file, path, FORMAT)
        cells = {name: hdf5.read_column(file, f"cells/{name}", path) for name in ("trace", "variant", "budget_tokens")}
        steps = {name: hdf5.read_column(file, f"steps/{name}", path) for name in _STEPS}
        digests = {name: _digest(file, name) for name in set(map(str, cells["trace"]))}
    _check(path, cells, steps)
    agree = np.where(steps["top1_agree"] == _NO_STEP, np.nan, steps["top1_agree"])
    return [
        Judged(str(trace), digests[str(trace)], str(variant), int(tokens), _mean(kl), _mean(top))
        for trace, variant, tokens, kl, top in zip(*cells.values(), steps["kl"], agree)
    ]


def _digest(file, trace):
    group = file.get(f"full/{trace}")
    return str(hdf5.plain(group.attrs.get("digest", ""))) if isinstance(group, h5py.Group) else ""


def _check(path, cells, steps):
    count = len(cells["trace"])
    if any(len(column) != count for column in cells.values()):
        raise UserError(f"{path}: the columns of /cells differ in length; remove it and let kvsim-judge write it again")
    for name, values in steps.items():
        if values.ndim != 2 or len(values) != count or not np.issubdtype(values.dtype, np.number):
            raise UserError(
                f"{path}:/steps/{name} is {values.shape}, not [{count} cells, steps]; remove it and let kvsim-judge write it again"
            )
        if values.shape != steps["kl"].shape:
            raise UserError(f"{path}: /steps/{name} and /steps/kl differ in shape; remove it and let kvsim-judge write it again")
    # A divergence is not below 0; single precision may leave a rounding error there.
    if np.isinf(steps["kl"]).any() or (steps["kl"] < -1e-3).any():
        raise UserError(f"{path}: /steps/kl holds values that are no divergence; remove it and let kvsim-judge write it again")
    if not np.isin(steps["top1_agree"], (0, 1, _NO_STEP)).all():
        raise UserError(
            f"{path}: /steps/top1_agree holds something else than 0, 1 and 255; remove it and let kvsim-judge write it again"
        )
    keys = list(zip(map(str, cells["trace"]), map(str, cells["variant"]), cells["budget_tokens"].tolist()))
    if len(set(keys)) < count:
        raise UserError(f"{path}: a cell stands there twice; remove it and let kvsim-judge write it again")


def _mean(values):
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
