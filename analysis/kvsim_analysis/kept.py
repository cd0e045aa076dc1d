"""Reads kept.h5: which positions every variant kept, per layer and selection unit."""

import os
from dataclasses import dataclass, field
from typing import List, Optional

import numpy as np

from . import hdf5
from .errors import UserError, unknown

FORMAT = "kvsim-kept"
NEVER = 0xFFFFFFFF  # in evicted_at: the token stayed
IN_PROMPT = 0xFFFFFFFE  # the token left before the first decode step


@dataclass
class KeptSet:
    """The kept positions of one layer: `positions[u]` ascends, for unit u.

    `unit` says what u counts: "kv" (KV heads), "query" (query heads) or "layer" (one for all heads).
    `evicted_at` [units, prompt + decode] is the step after which a position was gone (NEVER if it stayed, IN_PROMPT if it
    left before the first step), for policies that evict while decoding, else None.
    """

    unit: str
    positions: List[np.ndarray] = field(repr=False)
    evicted_at: Optional[np.ndarray] = field(default=None, repr=False)

    def mask(self, length):
        """A boolean array [units, length], true where a position is kept."""
        out = np.zeros((len(self.positions), length), bool)
        for row, kept in zip(out, self.positions):
            row[kept[kept < length]] = True
        return out


class KeptSets:
    """All cells of a kept.h5; `cells` is a list of (trace name, variant spec, budget in tokens)."""

    def __init__(self, path, trace_names, specs):
        if not os.path.isfile(path):
            raise UserError(f"no kept.h5 in {os.path.dirname(path)}; run again with `kvsim run ... --save kept`")
        self.path = path
        with hdf5.open_file(path) as file:
            hdf5.check_format(file, path, FORMAT)
            columns = hdf5.read_group(file, "cells", path, required=("trace", "variant", "budget_tokens"))
        traces = _names(columns["trace"], trace_names)
        variants = _names(columns["variant"], specs)
        self.cells = list(zip(traces, variants, (int(b) for b in columns["budget_tokens"])))
        self._specs = specs

    def read(self, variant, budget_tokens, layer, trace=None):
        """The KeptSet of one cell and layer; see Results.kept."""
        spec = self._specs[variant] if isinstance(variant, (int, np.integer)) else variant
        found = [i for i, (t, v, b) in enumerate(self.cells) if v == spec and b == budget_tokens and trace in (None, t)]
        if not found:
            raise self._missing(spec, budget_tokens, trace)
        if len(found) > 1:
            names = ", ".join(sorted({self.cells[i][0] for i in found}))
            raise UserError(f"{self.path} holds this cell for several traces; name one with trace=: {names}")
        with hdf5.open_file(self.path) as file:
            return self._read_layer(file, found[0], layer)

    def _missing(self, spec, budget, trace):
        if trace is not None and all(t != trace for t, _, _ in self.cells):
            return unknown(f"trace in {self.path}", trace, sorted({t for t, _, _ in self.cells}))
        budgets = sorted({b for _, v, b in self.cells if v == spec})
        if budgets:
            return UserError(
                f"{self.path} holds no budget {budget} for {spec}; there are: {', '.join(map(str, budgets))}"
            )
        return unknown(f"kept sets in {self.path} of variant", spec, sorted({v for _, v, _ in self.cells}))

    def _read_layer(self, file, cell, layer):
        groups = {int(k): k for k in file.get("kept", ()) if k.isdigit()}
        if cell not in groups:
            raise UserError(
                f"{self.path} holds no positions for this cell: its sets change from step to step, which is not stored"
            )
        group = file["kept"][groups[cell]]
        layers = {int(k): k for k in group if k.isdigit()}
        if layer not in layers:
            raise unknown("layer", layer, sorted(layers))
        node = group[layers[layer]]
        name = f"kept/{groups[cell]}/{layers[layer]}"
        indices = hdf5.read_column(file, f"{name}/indices", self.path)
        offsets = hdf5.read_column(file, f"{name}/offsets", self.path).astype(np.int64)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(indices) or (np.diff(offsets) < 0).any():
            raise UserError(f"{self.path}:/{name}/offsets does not cut its {len(indices)} indices into units")
        unit = next(
            (hdf5.plain(n.attrs["unit"]) for n in (node, node["indices"], group, file) if "unit" in n.attrs), "kv"
        )
        gone = node["evicted_at"][:] if "evicted_at" in node else None
        return KeptSet(unit, [indices[a:b] for a, b in zip(offsets[:-1], offsets[1:])], gone)


def _names(values, names):
    """Cell columns by name, whether they were stored as names or as indices into the results' tables."""
    if np.issubdtype(np.asarray(values).dtype, np.integer):
        return [names[int(v)] for v in values]
    return [str(v) for v in values]
