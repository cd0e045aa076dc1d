"""Decodes pseudo tokens on an evicted cache of its own, beside the model's untouched one."""

from dataclasses import dataclass

import numpy as np
import torch

from .capture import Call, observing, probabilities
from .dtypes import raw
from .lookahead import FirstPass
from .plan import Plan
from .writer import TraceWriter


@dataclass
class Small:
    """What one layer can still read: key and value [units, n, d], and the positions [units, n] of its tokens; a unit is a
    query head or a KV head."""

    key: torch.Tensor
    value: torch.Tensor
    position: torch.Tensor

    def append(self, key: torch.Tensor, value: torch.Tensor, position: int) -> None:
        """One token's key and value [Hkv, 1, d]."""
        copies = self.key.shape[0] // key.shape[0]
        self.key = torch.cat([self.key, key.repeat_interleave(copies, dim=0)], dim=1)
        self.value = torch.cat([self.value, value.repeat_interleave(copies, dim=0)], dim=1)
        self.position = torch.nn.functional.pad(self.position, (0, 1), value=position)

    def bytes(self) -> int:
        return self.key.nbytes + self.value.nbytes


@dataclass
class Result:
    """Pseudo tokens, their queries [Hq, n, d] by layer, and what was kept [units, capacity] by layer."""

    name: str
    attributes: dict
    tokens: list[int]
    first: int
    queries: dict[int, torch.Tensor]
    kept: dict[int, np.ndarray]

    def write(self, writer: TraceWriter, plan: Plan, origin: dict) -> None:
        """`origin` says which model and prompt the pass belongs to."""
        at = f"/lookahead/{self.name}"
        writer.put(f"{at}/token", np.array(self.tokens, dtype=np.int32), "int32")
        writer.put(f"{at}/position", np.arange(self.first, self.first + len(self.tokens), dtype=np.int32), "int32")
        for layer in plan.layers:
            below = f"{at}/layers/{layer.index:03d}"
            writer.put(f"{below}/query", raw(self.queries[layer.index]), plan.dtype)
            writer.put(f"{below}/kept", self.kept[layer.index], "int32")
        writer.attributes(at, self.attributes | origin)


class Pass:
    def __init__(self, model, recorder, settings: FirstPass, length: int):
        self._model, self._recorder, self._settings, self._length = model, recorder, settings, length
        self._prompt = recorder.plan.prompt
        self._caches: dict[int, Small] = {}
        self._queries: dict[int, list[torch.Tensor]] = {}
        self._kept: dict[int, np.ndarray] = {}

    def run(self, logits: torch.Tensor, ends: set[int], progress) -> Result:
        for layer in self._recorder.keys:
            self._evict(layer)
        tokens = []
        token = int(torch.argmax(logits.float()))
        while len(tokens) < self._length and token not in ends:
            token = self._feed(token, self._prompt + len(tokens), tokens)
            progress.step()
        policy, some = self._settings.policy, next(iter(self._kept.values()))
        attributes = {"method": policy.method, "capacity": some.shape[1], "window": policy.window,
                      "stopped_at_eos": int(len(tokens) < self._length), "steps": len(tokens), "next_token": token,
                      "cache_bytes": sum(small.bytes() for small in self._caches.values())}
        queries = {layer: torch.cat(rows, dim=1) for layer, rows in self._queries.items()} or self._no_queries()
        return Result(self._settings.name, attributes, tokens, self._prompt, queries, self._kept)

    def _no_queries(self) -> dict[int, torch.Tensor]:
        return {layer.index: self._recorder.keys[layer.index].new_zeros(layer.query_heads, 0, layer.head_dim)
                for layer in self._recorder.plan.layers}

    def _feed(self, token: int, position: int, tokens: list[int]) -> int:
        tokens.append(token)
        ids = torch.tensor([[token]], device=self._model.device)
        where = torch.tensor([[position]], device=self._model.device)
        with torch.inference_mode(), observing(self):
            logits = self._model(input_ids=ids, position_ids=where, use_cache=False).logits[0, -1]
        return int(torch.argmax(logits.float()))

    def _evict(self, layer: int) -> None:
        key, value = self._recorder.keys[layer][0], self._recorder.values[layer][0]
        policy, attention, units = self._settings.policy, None, key.shape[0]
        if policy.per_query_head:
            query = self._recorder.tail[layer]
            scale, softcap, window = self._recorder.facts[layer]
            rows = [block for _, block in probabilities(query, key, self._prompt - query.shape[1], scale, softcap, window)]
            attention, units = torch.cat(rows, dim=1), query.shape[0]
        kept = policy.kept(attention, self._prompt, self._settings.capacity or self._prompt, units)
        index = torch.tensor(kept, dtype=torch.int64, device=key.device)
        copies = units // key.shape[0]
        gather = lambda x: x.repeat_interleave(copies, dim=0).gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))  # noqa: E731
        self._caches[layer] = Small(gather(key), gather(value), index)
        self._kept[layer] = kept

    def __call__(self, call: Call) -> torch.Tensor:
        """Attention of one pseudo token over the small cache and the pseudo tokens before it, itself included."""
        small, window = self._caches[call.layer], self._recorder.facts[call.layer][2]
        position = self._prompt + len(self._queries.setdefault(call.layer, []))
        self._queries[call.layer].append(call.query[0].clone())
        small.append(call.key[0], call.value[0], position)
        query = call.query[0].float().reshape(small.key.shape[0], -1, call.query.shape[3])
        logits = torch.matmul(query, small.key.float().transpose(1, 2)) * call.scale
        if call.softcap:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        if window:
            old = small.position <= position - window
            logits = logits.masked_fill(old[:, None, :], float("-inf"))
        output = torch.matmul(torch.softmax(logits, dim=-1), small.value.float())
        return output.to(call.query.dtype).reshape(1, 1, call.query.shape[1], -1)
