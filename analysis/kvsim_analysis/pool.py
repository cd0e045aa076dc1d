"""Joins several results folders into one source for the figures: more traces, more variants, one set of names.

Cells that stand in several folders (the references usually do) count once; if their values differ, the
folders are not one experiment and the user is sent to `kvsim-plot compare`.
"""

import numpy as np

from .errors import UserError
from .results import load

_REMAPPED = ("trace", "policy", "variant", "budget_request")
_KEYS = {
    "rows": ("trace", "variant", "layer", "kv_head", "budget_request", "budget_tokens"),
    "layers": ("trace", "variant", "layer", "budget_request", "budget_tokens"),
    "summary": ("trace", "variant", "budget_request", "budget_tokens"),
}
# Runs of one experiment on two instruction paths agree to 1e-5 relative; beyond ten times that they differ.
_AGREE = 1e-4


def open_all(folders):
    """One source for all folders: the Results itself for one folder, a Pool for several."""
    runs = [load(f) for f in folders]
    return runs[0] if len(runs) == 1 else Pool(runs)


class Pool:
    """Several Results behind the interface of one (the parts that figures use)."""

    def __init__(self, runs):
        self.runs = runs
        self.folder = runs[0].folder
        self.path = ", ".join(r.path for r in runs)
        self.attributes = runs[0].attributes
        self.trace_table, trace_maps = _union([r.trace_table for r in runs], trace_keys)
        self.variant_table, variant_maps = _union([r.variant_table for r in runs], lambda t: list(t["spec"]))
        self.metric_table, _ = _union([r.metric_table for r in runs], lambda t: list(t["name"]))
        budgets, budget_maps = _union([{"text": r.budgets} for r in runs], lambda t: list(t["text"]))
        policies, policy_maps = _union([{"name": r.policy_names} for r in runs], lambda t: list(t["name"]))
        self._maps = [dict(zip(_REMAPPED, m)) for m in zip(trace_maps, policy_maps, variant_maps, budget_maps)]
        self.budgets, self.policy_names = budgets["text"], policies["name"]
        self.trace_names, self.specs = self.trace_table["name"], self.variant_table["spec"]
        self.metric_names = list(self.metric_table["name"])
        self.column_names = {t: list(dict.fromkeys(c for r in runs for c in r.column_names[t])) for t in _KEYS}
        self.detail_metrics = sorted({m for r in runs for m in r.detail_metrics})
        self._first = {}
        self._refuse_disagreement()

    def column(self, table, name):
        """As Results.column, over all folders, every cell once; NaN where a folder lacks the column."""
        return self._raw(table, name)[self._first_seen(table)[0]]

    def detail_arrays(self, metric):
        """As Results.detail_arrays; shorter decodes are padded with NaN."""
        parts = [(m, *r.detail_arrays(metric)) for m, r in zip(self._maps, self.runs) if metric in r.detail_metrics]
        if not parts:
            return self.runs[0].detail_arrays(metric)  # raises, and says why
        steps = max(v.shape[1] for _, _, v in parts)
        values = np.concatenate(
            [np.pad(v, ((0, 0), (0, steps - v.shape[1])), constant_values=np.nan) for _, _, v in parts]
        )
        cells = {k: np.concatenate([m[k][c[k]] if k in m else c[k] for m, c, _ in parts]) for k in parts[0][1]}
        keys = np.stack([cells[k] for k in ("trace", "variant", "layer", "kv_head", "budget_tokens")], 1)
        first = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        return {k: v[first] for k, v in cells.items()}, values[first]

    def _raw(self, table, name):
        parts = []
        for run, maps in zip(self.runs, self._maps):
            if name in run.column_names[table]:
                values = run.column(table, name)
                parts.append(maps[name][values] if name in maps else values)
            else:
                parts.append(np.full(len(run.column(table, "variant")), np.nan))
        return np.concatenate(parts)

    def _first_seen(self, table):
        """(indices of the cells to keep, for every raw cell the raw index of the one that stands for it)."""
        if table not in self._first:
            keys = np.stack([self._raw(table, k) for k in _KEYS[table]], 1)
            _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
            self._first[table] = np.sort(first), first[inverse.reshape(-1)]
        return self._first[table]

    def _refuse_disagreement(self):
        _, stands_for = self._first_seen("summary")
        for name in self.metric_names:
            if f"{name}_mean" not in self.column_names["summary"]:
                continue
            values = self._raw("summary", f"{name}_mean")
            other = values[stands_for]
            bad = np.abs(values - other) > _AGREE * np.maximum(np.abs(values), np.abs(other)) + 1e-6
            if bad.any():
                variant = self.specs[self._raw("summary", "variant")[np.argmax(bad)]]
                folders = " ".join(r.folder for r in self.runs)
                raise UserError(
                    f"the folders disagree on {name} of {variant} for one trace; "
                    f"they cannot share one figure, use: kvsim-plot compare {folders}"
                )


def trace_keys(table):
    """What identifies a trace across runs: its digest, or its name where none was recorded."""
    digests = table.get("digest", [""] * len(table["name"]))
    return [str(d) or f"name:{n}" for d, n in zip(digests, table["name"])]


def _union(tables, keys_of):
    """The union of tables by key, and for each table the array old index -> new index."""
    shared = [c for c in tables[0] if all(c in t for t in tables)]
    order, columns, maps = {}, {c: [] for c in shared}, []
    for table in tables:
        places = []
        for i, key in enumerate(keys_of(table)):
            if key not in order:
                order[key] = len(order)
                for c in shared:
                    columns[c].append(table[c][i])
            places.append(order[key])
        maps.append(np.array(places, np.int64))
    return {c: np.array(v, dtype=tables[0][c].dtype) for c, v in columns.items()}, maps
