"""Recomputes attention from a written trace in double precision and compares it with what the model itself gave."""

from dataclasses import dataclass

import h5py
import numpy as np

from .dtypes import SELFCHECK_BOUNDS
from .errors import SelfCheckError


@dataclass
class Sample:
    """The model's own attention output [Hq, dv] of one layer at one position."""

    layer: int
    position: int
    output: np.ndarray


@dataclass
class Outcome:
    max_error: float
    mean_error: float
    bound: float
    count: int


def spread(count: int, number: int) -> set[int]:
    """Up to `number` indices spread evenly over range(count), first and last included."""
    if count <= 0:
        return set()
    return {round(i) for i in np.linspace(0, count - 1, min(count, number))}


def attention_from_file(file: h5py.File, layer: int, position: int) -> tuple[np.ndarray, np.ndarray]:
    """(output [Hq, dv], rounding scale [Hq]) at a recorded position, float64, from the file's tensors and attributes only.

    The scale is sum_j a_j |v_j|: the size of the terms whose rounding the model's own output carries.
    """
    group = file[f"/layers/{layer:03d}"]

    def attribute(name):
        return group.attrs.get(name, file.attrs[name])

    row = int(np.searchsorted(group["query_position"][:], position))
    window = int(group.attrs["sliding_window"])
    first = max(0, position - window + 1) if window else 0
    query = np.asarray(group["query"][:, row, :], dtype=np.float64)
    keys = np.asarray(group["key"][:, first : position + 1, :], dtype=np.float64)
    values = np.asarray(group["value"][:, first : position + 1, :], dtype=np.float64)
    group_size = query.shape[0] // keys.shape[0]
    logits = np.einsum("ghd,gnd->ghn", query.reshape(keys.shape[0], group_size, -1), keys) * float(attribute("softmax_scale"))
    cap = float(attribute("logit_softcap"))
    if cap:
        logits = cap * np.tanh(logits / cap)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    output = np.einsum("ghn,gnd->ghd", weights, values).reshape(query.shape[0], -1)
    scale = np.einsum("ghn,gn->gh", weights, np.linalg.norm(values, axis=-1)).reshape(-1)
    return output, scale


def check(file: h5py.File, samples: list[Sample], dtype: str) -> Outcome:
    """Compares all samples; raises SelfCheckError where an error is above the bound of the model's precision."""
    errors = []
    worst = (-1.0, None, 0)
    for sample in samples:
        output, scale = attention_from_file(file, sample.layer, sample.position)
        error = np.linalg.norm(output - sample.output, axis=-1) / np.maximum(scale, np.finfo(np.float32).tiny)
        error = np.where(np.isfinite(error), error, np.inf)
        head = int(error.argmax())
        if error[head] > worst[0]:
            worst = (float(error[head]), sample, head)
        errors.extend(error.tolist())
    bound = SELFCHECK_BOUNDS[dtype]
    if worst[0] > bound:
        raise SelfCheckError(f"self-check failed: layer {worst[1].layer}, head {worst[2]}, position {worst[1].position}: attention "
                             f"from the stored tensors differs from the model's by {worst[0]:.2e} (bound {bound:.0e}); no trace written")
    return Outcome(max(errors), float(np.mean(errors)), bound, len(errors))
