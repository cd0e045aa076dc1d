"""Reads a replay's folder: the cells of kept.h5, what results.h5 says about them, and why some cannot be judged."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ..errors import RecordError

NEVER = np.iinfo(np.int32).max
_NEVER_EVICTED, _EVICTED_IN_PROMPT = 0xFFFFFFFF, 0xFFFFFFFE
# What the attribute `entries` of a kept set says of caches that hold something else than the model's own entries at their own positions.
DAMAGE = (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError)  # what reading a damaged file raises
_NOT_RECORDED = {"changed": "changes keys or values of what it keeps", "moved": "moves keys to other positions"}


def reason(error: Exception) -> str:
    return next(iter(str(error).strip("'\"").splitlines()), type(error).__name__)


def _damage_refused(method):
    """Makes one line of what a damaged file raises in a method of Replay."""
    @functools.wraps(method)
    def guarded(self, *args):
        try:
            return method(self, *args)
        except DAMAGE as error:
            raise RecordError(f"{self.folder}: kept.h5 or results.h5 is damaged ({reason(error)}); replay it again") from error
    return guarded


@dataclass(frozen=True)
class Cell:
    """One kept set per layer: `number` is its place in kept.h5, `request` the budget as it was asked for."""

    number: int
    trace: str
    variant: str
    budget_tokens: int
    policy: str
    request: str
    oracle: bool

    @property
    def key(self) -> tuple:
        return self.trace, self.variant, self.budget_tokens


@dataclass
class TraceEntry:
    """A trace as results.h5 names it."""

    name: str
    path: str
    digest: str


class Replay:
    """kept.h5 and results.h5 of one folder, open for reading. `left_out` says per variant why its cells are not among `cells`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.kept = _open(folder / "kept.h5", "kvsim-kept", "replay again with --save kept")
        self.results = _open(folder / "results.h5", "kvsim-results", "let the replay finish: the same command continues it")
        self._read()

    @_damage_refused
    def _read(self) -> None:
        self.traces = [TraceEntry(*row) for row in zip(*(text(self.results, f"traces/{name}") for name in ("name", "path", "digest")), strict=True)]
        self._variants = text(self.results, "variants/spec")
        self._summary = self._summary_rows()
        self.left_out: dict[str, str] = {}
        self.cells = self._cells()

    def close(self) -> None:
        self.kept.close()
        self.results.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _summary_rows(self) -> dict[tuple, int]:
        """(trace, variant, budget in tokens) -> row of /summary; the first where two requests mean the same budget."""
        summary, names, found = self.results["summary"], [trace.name for trace in self.traces], {}
        for row, (t, v, tokens) in enumerate(zip(summary["trace"][:], summary["variant"][:], summary["budget_tokens"][:], strict=True)):
            found.setdefault((names[t], self._variants[v], int(tokens)), row)
        return found

    def _cells(self) -> list[Cell]:
        columns = [text(self.kept, "cells/trace"), text(self.kept, "cells/variant"), self.kept["cells/budget_tokens"][:].tolist()]
        policies = dict(zip(self._variants, text(self.results, "variants/policy")))
        oracles = dict(zip(self._variants, self.results["variants/oracle"][:]))
        requests, request = text(self.results, "budgets/text"), self.results["summary/budget_request"][:]
        cells, seen = [], set()
        for number, key in enumerate(zip(*columns, strict=True)):
            trace, variant, tokens = key
            if key in seen:
                continue  # two requests that mean the same budget
            seen.add(key)
            reason = self._reason(number, key)
            if reason:
                self.left_out.setdefault(variant, reason)
                continue
            cells.append(Cell(number, trace, variant, tokens, policies[variant], requests[request[self._summary[key]]], bool(oracles[variant])))
        for variant in self._variants:
            if variant not in columns[1]:
                self.left_out.setdefault(variant, "what it keeps changes from step to step, or entries are masked and not dropped, so no set was stored")
        return cells

    def _reason(self, number: int, key: tuple) -> str | None:
        """Why a cell's sets are not all there is to know about its cache; None when they are."""
        if key not in self._summary:
            return "some layers have no answer (see /failures of results.h5)"
        if f"kept/{number}" not in self.kept:
            return "what it keeps changes from step to step, so no set was stored"
        for name, layer in self.kept[f"kept/{number}"].items():
            if "entries" not in layer.attrs:
                raise RecordError(f"kept.h5: cell {number}, layer {name} does not say whether its entries are as recorded (an older kvsim wrote it); replay again")
            if word(layer, "entries") in _NOT_RECORDED:
                return f"{_NOT_RECORDED[word(layer, 'entries')]}, which masks cannot show"
        return None

    @_damage_refused
    def layers(self, cell: Cell) -> list[int]:
        return sorted(int(name) for name in self.kept[f"kept/{cell.number}"])

    @_damage_refused
    def last_steps(self, cell: Cell, layer: int, heads: tuple[int, int], prompt: int, steps: int) -> np.ndarray:
        """The last step at which each query head can read each position, int32 [Hq, T + S]: -1 = none, NEVER = all.
        `heads`: query and KV heads."""
        group = self.kept[f"kept/{cell.number}/{layer:03d}"]
        unit, offsets = word(group, "unit"), group["offsets"][:].astype(np.int64)
        units = len(offsets) - 1
        if units not in {"kv": [heads[1]], "query": [heads[0]], "layer": [1, heads[1]]}.get(unit, []):  # layer: one set, or equal ones for all KV heads
            raise RecordError(f"kept.h5: cell {cell.number}, layer {layer} has {units} units of kind {unit}, which do not fit the trace; replay it again")
        if "evicted_at" in group:
            return np.repeat(_of_times(group["evicted_at"][:], (units, prompt + steps)), heads[0] // units, axis=0)
        last = np.full((units, prompt + steps), -1, dtype=np.int32)
        last[:, prompt:] = NEVER
        indices = group["indices"][:]
        if offsets[0] != 0 or offsets[-1] != len(indices) or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets of {group.name} do not divide its {len(indices)} indices")
        for u in range(units):
            kept = indices[offsets[u] : offsets[u + 1]].astype(np.int64)
            if (np.diff(kept) <= 0).any() or (len(kept) and not 0 <= kept[0] <= kept[-1] < prompt):
                raise ValueError(f"indices of {group.name} are not ascending positions of the prompt")
            last[u, kept] = NEVER
        return np.repeat(last, heads[0] // units, axis=0)

    @_damage_refused
    def digest(self, cell: Cell) -> str:
        """Stands for a cell's sets: the first 16 hex digits of SHA-256 over all of its arrays."""
        found = hashlib.sha256()
        for layer in self.layers(cell):
            group = self.kept[f"kept/{cell.number}/{layer:03d}"]
            for name in sorted(group):
                found.update(f"{layer}/{name}/{group.attrs['unit']}".encode())
                found.update(np.ascontiguousarray(group[name][:]).tobytes())
        return found.hexdigest()[:16]

    @_damage_refused
    def figure(self, cell: Cell, metric: str) -> float:
        """A cell's mean of a metric, as the summary has it."""
        return float(self.results[f"summary/{metric}_mean"][self._summary[cell.key]])

    def has(self, metric: str) -> bool:
        return f"summary/{metric}_mean" in self.results

    @_damage_refused
    def direction(self, metric: str) -> str:
        """`higher` or `lower`; RecordError where the run did not compute that metric."""
        directions = dict(zip(text(self.results, "metrics/name"), text(self.results, "metrics/direction")))
        if metric not in directions or f"summary/{metric}_mean" not in self.results:
            raise RecordError(f"--by {metric}: the run has no such metric; it has {', '.join(directions)}")
        return directions[metric]


def _of_times(evicted_at: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if evicted_at.shape != shape:
        raise RecordError(f"kept.h5: evicted_at is {list(evicted_at.shape)}, not {list(shape)} units and positions; replay it again")
    last = np.minimum(evicted_at, NEVER).astype(np.int32)
    last[evicted_at == _NEVER_EVICTED] = NEVER
    last[evicted_at == _EVICTED_IN_PROMPT] = -1
    return last


def _open(path: Path, kind: str, remedy: str) -> h5py.File:
    if not path.is_file():
        raise RecordError(f"{path}: no such file; {remedy}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read as HDF5 ({str(error).splitlines()[0]})") from error
    found, version = word(file, "format"), word(file, "version")
    if found != kind or not version.startswith("1."):
        file.close()
        raise RecordError(f"{path}: is {found} {version}, expected {kind} 1.x")
    return file


def word(item, name: str, missing: str = "") -> str:
    """A text attribute, of fixed or variable length."""
    value = item.attrs.get(name, missing)
    return value.decode() if isinstance(value, bytes) else str(value)


def text(file: h5py.File, path: str) -> list[str]:
    return file[path].asstr()[:].tolist()
