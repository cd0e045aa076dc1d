"""Decodes pseudo tokens on an evicted cache: one cache per layer and query head, beside the model's untouched own."""

from dataclasses import dataclass

import numpy as np
import torch

from .capture import Call, observing, probabilities
from .dtypes import raw
from .lookahead import Lookahead, snapkv_kept
from .plan import Plan
from .writer import TraceWriter


@dataclass
class Small:
    """What one layer can still read: key and value [Hq, n, d], and the positions [Hq, n] of its tokens."""

    key: torch.Tensor
    value: torch.Tensor
    position: torch.Tensor


@dataclass
class Result:
    """Pseudo tokens, their queries [Hq, n, d] by layer, and what was kept [Hq, capacity] by layer."""

    name: str
    attributes: dict
    tokens: list[int]
    first: int
    queries: dict[int, torch.Tensor]
    kept: dict[int, np.ndarray]

    def write(self, writer: TraceWriter, plan: Plan) -> None:
        at = f"/lookahead/{self.name}"
        writer.put(f"{at}/token", np.array(self.tokens, dtype=np.int32), "int32")
        writer.put(f"{at}/position", np.arange(self.first, self.first + len(self.tokens), dtype=np.int32), "int32")
        for layer in plan.layers:
            below = f"{at}/layers/{layer.index:03d}"
            writer.put(f"{below}/query", raw(self.queries[layer.index]), plan.dtype)
            writer.put(f"{below}/kept", self.kept[layer.index], "int32")
        writer.attributes(at, self.attributes)


class Pass:
    def __init__(self, model, recorder, settings: Lookahead, budget: int):
        self._model, self._settings, self._budget = model, settings, budget
        self._prompt = recorder.plan.prompt
        self._caches: dict[int, Small] = {}
        self._windows: dict[int, int] = {}
        self._queries: dict[int, list[torch.Tensor]] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._recorder = recorder

    def run(self, logits: torch.Tensor, ends: set[int], progress) -> Result:
        for layer, query in self._recorder.tail.items():
            self._evict(layer, query)
        tokens, stopped = [], False
        token = int(torch.argmax(logits.float()))
        while len(tokens) < self._settings.length:
            if token in ends:
                stopped = True
                break
            token = self._feed(token, self._prompt + len(tokens), tokens)
            progress.step()
        some = next(iter(self._kept.values()))
        attributes = {"method": self._settings.method, "capacity": some.shape[1], "window": self._settings.window,
                      "stopped_at_eos": int(stopped)}
        empty = {layer: query[:, :0] for layer, query in self._recorder.tail.items()}
        queries = {layer: torch.cat(rows, dim=1) for layer, rows in self._queries.items()} or empty
        return Result(f"snapkv-{self._budget}", attributes, tokens, self._prompt, queries, self._kept)

    def _feed(self, token: int, position: int, tokens: list[int]) -> int:
        tokens.append(token)
        ids = torch.tensor([[token]], device=self._model.device)
        where = torch.tensor([[position]], device=self._model.device)
        with torch.inference_mode(), observing(self):
            logits = self._model(input_ids=ids, position_ids=where, use_cache=False).logits[0, -1]
        return int(torch.argmax(logits.float()))

    def _evict(self, layer: int, query: torch.Tensor) -> None:
        key, value, facts = self._recorder.keys[layer][0], self._recorder.values[layer][0], self._recorder.facts[layer]
        scale, softcap, window = facts
        rows = [block for _, block in probabilities(query, key, self._prompt - query.shape[1], scale, softcap, window)]
        settings = self._settings
        kept = snapkv_kept(torch.cat(rows, dim=1), settings.window, settings.kernel, settings.pool, self._budget)
        index = torch.tensor(kept, dtype=torch.int64, device=key.device)
        group = query.shape[0] // key.shape[0]
        gather = lambda x: x.repeat_interleave(group, dim=0).gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))  # noqa: E731
        self._caches[layer] = Small(gather(key), gather(value), index)
        self._windows[layer], self._kept[layer] = window, kept

    def __call__(self, call: Call) -> torch.Tensor:
        """Attention of one pseudo token over the small cache and the pseudo tokens before it, itself included."""
        small = self._caches[call.layer]
        heads, position = call.query.shape[1], self._prompt + len(self._queries.setdefault(call.layer, []))
        group = heads // call.key.shape[1]
        small.key = torch.cat([small.key, call.key[0].repeat_interleave(group, dim=0)], dim=1)
        small.value = torch.cat([small.value, call.value[0].repeat_interleave(group, dim=0)], dim=1)
        here = torch.full((heads, 1), position, dtype=torch.int64, device=small.position.device)
        small.position = torch.cat([small.position, here], dim=1)
        self._queries[call.layer].append(call.query[0].clone())
        logits = torch.matmul(call.query[0].float(), small.key.float().transpose(1, 2)) * call.scale
        if call.softcap:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        if self._windows[call.layer]:
            old = small.position <= position - self._windows[call.layer]
            logits = logits.masked_fill(old[:, None, :], float("-inf"))
        output = torch.matmul(torch.softmax(logits, dim=-1), small.value.float())
        return output.to(call.query.dtype).transpose(0, 1)[None]
