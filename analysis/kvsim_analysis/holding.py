"""Which tokens the caches of a decode-time policy could read at every step, from the eviction times in kept.h5.

Memory is [tokens, steps] per layer, whatever the number of caches.
"""

import numpy as np

from . import select
from .errors import UserError
from .kept import IN_PROMPT, NEVER


CACHE_SIZE = "cache_size"


class Holding:
    """One variant at one budget of one trace: `share` [tokens, steps] is the share of the chosen caches that could read a
    token at a step, `size` [steps] their mean number of tokens, `caches` how many there are."""

    def __init__(self, source, variant, budget_tokens, trace, layers=None, kv_head=None, share=True):
        table = source.trace_table
        self.prompt, self.decode = int(table["prompt"][trace]), int(table["decode"][trace])
        self.tokens = self.prompt + self.decode
        kv_heads = int(table["kv_heads"][trace])
        self.share = np.zeros((self.tokens, self.decode), np.float32) if share else None
        self.size, self.caches = np.zeros(self.decode), 0
        spec = str(source.specs[variant])
        for layer in select.layers(source, layers):
            kept = source.kept(variant, budget_tokens, layer, str(source.trace_names[trace]))
            if kept.evicted_at is None:
                raise UserError(f"{spec} keeps one set for all steps; eviction times are stored for decode-time policies")
            gone = np.asarray(kept.evicted_at)
            if gone.shape[1] != self.tokens:
                raise UserError(f"the eviction times of layer {layer} are for {gone.shape[1]} tokens, the trace has {self.tokens}")
            if kv_head is not None:
                each = max(1, len(gone) // kv_heads)
                gone = gone[kv_head * each : (kv_head + 1) * each]
            for times in gone:
                self._add(times)
        if self.share is not None:
            self.share /= max(1, self.caches)
        self.size /= max(1, self.caches)

    def _add(self, times):
        """One cache: a token can be read from the step that wrote it (0 for the prompt's) to the step after which it left."""
        position = np.arange(self.tokens)
        first = np.maximum(0, position - self.prompt)
        last = np.where(times == NEVER, self.decode - 1, np.where(times == IN_PROMPT, -1, times.astype(np.int64)))
        change = np.zeros(self.decode + 1)
        there = last >= first
        np.add.at(change, first[there], 1)
        np.add.at(change, last[there] + 1, -1)
        self.size += np.cumsum(change)[:-1]
        if self.share is not None:
            steps = np.arange(self.decode)
            self.share += (steps >= first[:, None]) & (steps <= last[:, None])
        self.caches += 1

    def leaving(self):
        """[tokens, steps]: the share of the caches that let a token go after the step before."""
        return np.maximum(0.0, self.share[:, :-1] - self.share[:, 1:])


def evicts(source, variant):
    """Whether kept.h5 tells when the variant let tokens go."""
    cell = next((c for c in source.kept_sets().cells if c[1] == source.specs[variant]), None)
    if cell is None:
        return False
    try:
        return source.kept(variant, cell[2], select.layers(source, None)[0], cell[0]).evicted_at is not None
    except UserError:  # sets that change from step to step are not stored
        return False


def cache_sizes(source, variants, rows, trace=None, layers=None, kv_head=None):
    """{variant: [step]}: tokens per cache that a step could read, the mean over caches and traces (all, when `trace` is
    None), of those `variants` whose kept sets tell them. `rows` is a mask over /rows that chooses the budget.
    """
    out = {}
    for i in variants:
        found = []
        for t in range(len(source.trace_names)) if trace is None else [trace]:
            mine = rows & (source.column("rows", "variant") == i) & (source.column("rows", "trace") == t)
            for budget in np.unique(source.column("rows", "budget_tokens")[mine]):
                size = _size(source, i, int(budget), t, layers, kv_head)
                if size is not None:
                    found.append(size)
        if found:
            padded = np.full((len(found), max(map(len, found))), np.nan)
            for row, size in zip(padded, found):
                row[: len(size)] = size
            out[i] = np.nanmean(padded, axis=0)
    return out


def _size(source, variant, budget, trace, layers, kv_head):
    """[step] of one cell; prompt-time policies keep their set and every token that is written. None: not stored."""
    spec, name = str(source.specs[variant]), str(source.trace_names[trace])
    if (name, spec, budget) not in source.kept_sets().cells:
        return None
    if evicts(source, variant):
        return Holding(source, variant, budget, trace, layers, kv_head, share=False).size
    kv_heads, counts = int(source.trace_table["kv_heads"][trace]), []
    for layer in select.layers(source, layers):
        try:
            kept = source.kept(variant, budget, layer, name).positions
        except UserError:  # sets that change from step to step are not stored
            return None
        each = max(1, len(kept) // kv_heads)
        counts += [len(k) for k in (kept if kv_head is None or len(kept) == 1 else kept[kv_head * each : (kv_head + 1) * each])]
    return np.mean(counts) + 1.0 + np.arange(int(source.trace_table["decode"][trace]))
