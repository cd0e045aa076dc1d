"""Folders as `kvsim run --save kept` leaves them, written from analysis/SCHEMA.md, and a model whose evicted entries are really gone."""

import re
from dataclasses import dataclass

import h5py
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from kvsim_record import capture

NEVER, IN_PROMPT = 0xFFFFFFFF, 0xFFFFFFFE


@dataclass
class Sets:
    """One layer of a cell: `units` lists the kept prompt positions per unit, or `times` is evicted_at [units, T + S]."""

    unit: str
    units: list | None = None
    times: np.ndarray | None = None

    def readable(self, unit: int, step: int, prompt: int) -> list[int]:
        """Positions that a unit holds at a decode step, its own token included."""
        seen = range(prompt + step + 1)
        if self.times is None:
            kept = set(int(p) for p in self.units[unit])
            return [p for p in seen if p >= prompt or p in kept]
        gone = self.times[unit]
        return [p for p in seen if gone[p] == NEVER or (gone[p] != IN_PROMPT and gone[p] >= step)]


def drawn(random, unit, units, prompt, kept):
    """Each unit's own random set, the last prompt token always in it."""
    return Sets(unit, [np.sort(np.append(random.choice(prompt - 1, kept - 1, replace=False), prompt - 1)) for _ in range(units)])


def timed(random, units, prompt, steps):
    """Random times: a third never, a third before the first step, the rest at some step not before their own."""
    times = np.full((units, prompt + steps), NEVER, dtype=np.uint32)
    for row in times:
        for p in range(prompt + steps - 1):
            choice = random.integers(3)
            if choice == 1 and p < prompt:
                row[p] = IN_PROMPT
            elif choice == 2:
                row[p] = random.integers(max(0, p - prompt), steps)
    return Sets("kv", times=times)


def cells_of(trace, random, heads):
    """A cell for each way of keeping."""
    prompt, layers = trace.prompt, trace.layers
    equal = np.arange(0, prompt, 7)
    make = {"mine_kv(a=1)": lambda: drawn(random, "kv", heads[1], prompt, 20), "mine_query(b=2)": lambda: drawn(random, "query", heads[0], prompt, 15),
            "mine_layer(c=3)": lambda: drawn(random, "layer", 1, prompt, 10), "decode:mine(d=4)": lambda: timed(random, heads[1], prompt, trace.decode),
            "mine_equal(e=5)": lambda: Sets("layer", [equal] * heads[1]), "full": lambda: Sets("kv", [np.arange(prompt)] * heads[1])}
    return [(0, spec, 20, {layer: one() for layer in layers}, {"output_error": i}) for i, (spec, one) in enumerate(make.items())]


def write_replay(folder, traces, cells, metrics=None):
    """`traces`: paths; `cells`: (trace index, spec, budget, {layer: Sets} or None, {metric: mean}) in the order of kept.h5."""
    folder.mkdir(exist_ok=True)
    strings = h5py.string_dtype("utf-8")
    column = lambda file, name, values: file.create_dataset(name, data=np.array(values, dtype=object), dtype=strings)  # noqa: E731
    names, specs, budgets = [path.stem for path in traces], list(dict.fromkeys(c[1] for c in cells)), sorted({c[2] for c in cells})
    with h5py.File(folder / "kept.h5", "w") as file:
        file.attrs.update({"format": "kvsim-kept", "version": "1.0", "seed": 0})
        stored = [cell for cell in cells if cell[3] is not None]
        column(file, "cells/trace", [names[c[0]] for c in stored])
        column(file, "cells/variant", [c[1] for c in stored])
        file["cells/budget_tokens"] = np.array([c[2] for c in stored], dtype=np.int64)
        for number, cell in enumerate(stored):
            for layer, sets in cell[3].items():
                _write_sets(file.create_group(f"kept/{number}/{layer:03d}"), sets)
    with h5py.File(folder / "results.h5", "w") as file:
        file.attrs.update({"format": "kvsim-results", "version": "1.0"})
        column(file, "traces/name", names)
        column(file, "traces/path", [str(path) for path in traces])
        column(file, "traces/digest", [h5py.File(path, "r").attrs["digest"] for path in traces])
        column(file, "variants/spec", specs)
        column(file, "variants/policy", [re.match(r"[^(]+", spec)[0] for spec in specs])
        file["variants/oracle"] = np.array([spec.startswith("oracle") for spec in specs], dtype=np.uint8)
        column(file, "budgets/text", [str(budget) for budget in budgets])
        for name, values in {"trace": [c[0] for c in cells], "variant": [specs.index(c[1]) for c in cells],
                             "budget_request": [budgets.index(c[2]) for c in cells]}.items():
            file[f"summary/{name}"] = np.array(values, dtype=np.int32)
        file["summary/budget_tokens"] = np.array([c[2] for c in cells], dtype=np.int64)
        column(file, "metrics/name", list(metrics or {"output_error": "lower"}))
        column(file, "metrics/direction", list((metrics or {"output_error": "lower"}).values()))
        for name in metrics or {"output_error": "lower"}:
            file[f"summary/{name}_mean"] = np.array([c[4].get(name, np.nan) for c in cells])


def _write_sets(group, sets):
    group.attrs["unit"] = sets.unit
    group.attrs["entries"] = "recorded"
    units = sets.units if sets.units is not None else [np.flatnonzero(row != IN_PROMPT) for row in sets.times]
    group["indices"] = np.concatenate([np.asarray(unit) for unit in units]).astype(np.uint32)
    group["offsets"] = np.cumsum([0, *map(len, units)]).astype(np.uint64)
    if sets.times is not None:
        group["evicted_at"] = sets.times.astype(np.uint32)


def read_sets(cell):
    """{layer: Sets} of one group of kept.h5."""
    found = {}
    for layer, group in cell.items():
        offsets = group["offsets"][:].astype(int)
        units = [group["indices"][begin:end] for begin, end in zip(offsets, offsets[1:])]
        times = group["evicted_at"][:] if "evicted_at" in group else None
        found[int(layer)] = Sets(group.attrs["unit"], None if times is not None else units, times)
    return found


class Removed:
    """The model over prompt and answer, one token at a time; each query head attends to copies of what its unit still holds.
    Softmax in double precision over the shorter arrays; no masks."""

    def __init__(self, folder, ids, prompt, cell):
        capture.register()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=capture.IMPLEMENTATION).eval()
        self.ids, self.prompt, self.cell = ids, prompt, cell
        self.keys, self.values, self.step = {}, {}, -1

    def run(self):
        """Logits [S, vocabulary] after each decode token."""
        self.feed(self.ids[: self.prompt])
        return torch.stack([self.feed([token]) for token in self.ids[self.prompt :]])

    def generate(self, length):
        tokens = [int(self.feed(self.ids[: self.prompt]).argmax())]
        while len(tokens) < length:
            tokens.append(int(self.feed([tokens[-1]]).argmax()))
        return tokens

    def feed(self, tokens):
        begin = 0 if self.step < 0 else self.prompt + self.step
        position = torch.arange(begin, begin + len(tokens))[None]
        with torch.inference_mode(), capture.observing(self):
            logits = self.model(input_ids=torch.tensor([tokens]), position_ids=position, use_cache=False).logits[0, -1]
        self.step += 1
        return logits.double()

    def __call__(self, call):
        if self.step < 0:
            self.keys[call.layer], self.values[call.layer] = call.key[0], call.value[0]
            return capture.model_attention(call)
        for stored, new in ((self.keys, call.key), (self.values, call.value)):
            stored[call.layer] = torch.cat([stored[call.layer], new[0]], dim=1)
        heads, group = call.query.shape[1], call.query.shape[1] // call.key.shape[1]
        return torch.stack([self._head(call, head, head // group) for head in range(heads)])[None, None].to(call.query.dtype)

    def _head(self, call, head, kv):
        seen = list(range(self.prompt + self.step + 1))
        if call.layer in self.cell:
            sets = self.cell[call.layer]
            seen = sets.readable({"kv": kv, "query": head, "layer": kv if len(sets.units if sets.times is None else sets.times) > 1 else 0}[sets.unit], self.step, self.prompt)
        if call.window:
            seen = [p for p in seen if p > self.prompt + self.step - call.window]
        key, value = self.keys[call.layer][kv, seen].double(), self.values[call.layer][kv, seen].double()
        logits = key @ call.query[0, head, 0].double() * call.scale
        if call.softcap:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        return torch.softmax(logits, dim=0) @ value
