"""Reads one results folder (results.h5, kept.h5) into columns, and into pandas frames on demand.

Columns are read when first asked for, so that a figure over a large run loads only what it draws.
Everything but the frame properties works without pandas.
"""

import os

from . import frames, hdf5
from .errors import UserError, unknown
from .kept import KeptSets

FORMAT = "kvsim-results"
GROUPS = {"rows": "rows", "summary": "summary", "layers": "layer_rows"}


def load(folder):
    """Opens the results in `folder` (or a results.h5 itself).

    Returns a Results. Raises UserError when there is nothing to read, or it is not results of a
    version this package knows.
    """
    return Results(folder)


class Results:
    """The results of one run.

    `rows`, `summary`, `layers`, `variants`, `traces`, `metrics`, `failures` are pandas frames in
    which policies, variants, traces and budgets stand by name. `column(table, name)` gives one raw
    NumPy column, with indices instead of names, where table is "rows", "summary" or "layers".
    """

    def __init__(self, folder):
        self.folder, self.path = _locate(os.fspath(folder))
        self._cache = {}
        with hdf5.open_file(self.path) as file:
            self.attributes = hdf5.check_format(file, self.path, FORMAT)
            self.trace_table = hdf5.read_group(file, "traces", self.path, required=("name", "prompt"))
            self.variant_table = hdf5.read_group(file, "variants", self.path, required=("spec", "policy"))
            self.metric_table = hdf5.read_group(file, "metrics", self.path, required=("name", "direction"))
            self.policy_names = hdf5.read_column(file, "policies/name", self.path)
            self.budgets = hdf5.read_column(file, "budgets/text", self.path)
            self.column_names = {t: hdf5.columns_of(file, g, self.path) for t, g in GROUPS.items()}
            self.detail_metrics = sorted(k for k in file.get("detail", ()) if k != "cell")
        self.trace_names = self.trace_table["name"]
        self.specs = self.variant_table["spec"]
        self.metric_names = list(self.metric_table["name"])
        if not len(self.column("rows", "variant")):
            raise UserError(f"{self.path} holds no rows; every variant was refused or failed (see /failures)")

    def __repr__(self):
        return (
            f"<kvsim results {self.folder!r}: {len(self.trace_names)} traces, {len(self.specs)} variants, "
            f"{len(self.budgets)} budgets, {len(self.metric_names)} metrics>"
        )

    def column(self, table, name):
        """One column of "rows", "summary" or "layers" as an array; trace, policy, variant and budget_request are indices."""
        key = (table, name)
        if key not in self._cache:
            if table not in GROUPS:
                raise unknown("table", table, GROUPS)
            if name not in self.column_names[table]:
                raise unknown(f"column of /{GROUPS[table]}", name, self.column_names[table])
            with hdf5.open_file(self.path) as file:
                self._cache[key] = hdf5.read_column(file, f"{GROUPS[table]}/{name}", self.path)
        return self._cache[key]

    def detail_arrays(self, metric):
        """Per-step values of `metric`: (cells, values), a dict of columns and an array [cell, step]."""
        if not self.detail_metrics:
            raise UserError(f"{self.path} holds no per-step values; run again with `kvsim run ... --detail steps`")
        if metric not in self.detail_metrics:
            raise unknown("per-step metric", metric, self.detail_metrics)
        with hdf5.open_file(self.path) as file:
            cells = hdf5.read_group(
                file, "detail/cell", self.path, required=("trace", "variant", "layer", "kv_head", "budget_tokens")
            )
            values = hdf5.read_column(file, f"detail/{metric}", self.path)
        if values.ndim != 2 or values.shape[0] != len(cells["trace"]):
            raise UserError(f"{self.path}:/detail/{metric} is {values.shape}, not [{len(cells['trace'])} cells, steps]")
        return cells, values

    rows = property(lambda self: frames.table(self, "rows"), doc="One row per trace, layer, KV head, variant, budget.")
    summary = property(lambda self: frames.table(self, "summary"), doc="One row per trace, variant, budget.")
    layers = property(lambda self: frames.table(self, "layers"), doc="One row per trace, layer, variant, budget.")
    traces = property(lambda self: frames.frame(self.trace_table), doc="The recordings that were replayed.")
    variants = property(lambda self: frames.frame(self.variant_table), doc="The policies with all their parameters.")
    metrics = property(lambda self: frames.frame(self.metric_table), doc="Name, unit, direction and meaning.")

    @property
    def failures(self):
        """Variants that were refused or failed: unit, variant, message."""
        with hdf5.open_file(self.path) as file:
            present = "failures" in file
            columns = hdf5.read_group(file, "failures", self.path) if present else {}
        return frames.frame(columns or {"unit": [], "variant": [], "message": []})

    def detail(self, metric):
        """Per-step values as a frame: a row per cell (trace, variant, layer, kv_head, budget_tokens), a column per step."""
        return frames.detail(self, metric)

    def kept_sets(self):
        """The reader of kept.h5, for going through every cell."""
        return KeptSets(os.path.join(self.folder, "kept.h5"), list(self.trace_names), list(self.specs))

    def kept(self, variant, budget_tokens, layer, trace=None):
        """Which positions a variant (spec, or its index) kept: a KeptSet of one layer.

        `trace` may be left out when there is one. Raises UserError when the cell was not saved.
        """
        return self.kept_sets().read(variant, budget_tokens, layer, trace)


def _locate(path):
    """(folder, file) of the results at `path`; explains what is missing otherwise."""
    if os.path.isfile(path):
        return os.path.dirname(path) or ".", path
    if not os.path.isdir(path):
        raise UserError(f"no such folder: {path}")
    file = os.path.join(path, "results.h5")
    if os.path.isfile(file):
        return path, file
    if os.path.isdir(os.path.join(path, "parts")):
        raise UserError(f"{path} holds unmerged parts but no results.h5; finish the run, or: kvsim merge {path}")
    raise UserError(f"no results.h5 in {path}; make one with: kvsim run TRACE --policy SPEC --budget LIST --out {path}")
