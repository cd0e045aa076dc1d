"""Sums over the prompt that let accumulated-attention and expected-attention policies run on windowed recordings."""

import numpy as np
import torch

from .capture import Call, attend, masked_logits
from .probe import Layer, rotate

COLUMN_SUMS = 5  # tables [Hq, T] of attention_stats
# kvpress' expected_attention leaves the first four tokens (attention sinks) out of the query statistics.
SINKS = 4


class PromptStats:
    """Column sums of the causal prompt attention, and mean and covariance of the prompt's queries before RoPE, of one layer."""

    def __init__(self, layer: Layer, prompt_len: int, device):
        self.layer, self.prompt_len = layer, prompt_len
        heads, size = layer.query_heads, layer.head_dim
        self.sum = torch.zeros(heads, prompt_len, dtype=torch.float64, device=device)
        self.sum_sq = torch.zeros_like(self.sum)
        self.obcache_key, self.obcache_cross = torch.zeros_like(self.sum), torch.zeros_like(self.sum)
        self.query_sum = torch.zeros(heads, size, dtype=torch.float64, device=device)
        self.query_outer = torch.zeros(heads, size, size, dtype=torch.float64, device=device)

    def add(self, call: Call) -> None:
        """Takes in prompt rows; calls must come in order and together cover the prompt once."""
        query, key = call.query[0], call.key[0]
        value = call.value[0].float()
        length = value.square().sum(dim=-1).repeat_interleave(query.shape[0] // value.shape[0], dim=0)[:, None, :]  # |v|^2, [Hq, 1, seen]
        for _, logits in masked_logits(query, key, call.start, call.scale, call.softcap, call.window):
            attention = torch.softmax(logits, dim=-1)
            self.sum[:, : call.seen] += attention.sum(dim=1, dtype=torch.float64)
            square = attention.square()
            self.sum_sq[:, : call.seen] += square.sum(dim=1, dtype=torch.float64)
            output = attend(attention, value)
            along = attend(output, value.transpose(1, 2))  # v.o, [Hq, block, seen]
            logits.masked_fill_(attention == 0, 0.0)
            apart = length - 2 * along + output.square().sum(dim=-1, keepdim=True)  # |v - o|^2
            self.obcache_key[:, : call.seen] += (square * logits.square() * apart).sum(dim=1, dtype=torch.float64)
            self.obcache_cross[:, : call.seen] += (2 * square * logits * (length - along)).sum(dim=1, dtype=torch.float64)
        skip = max(0, SINKS - call.start)
        before = unrotated(query[:, skip:].double(), call.start + skip, self.layer)
        self.query_sum += before.sum(dim=1)
        self.query_outer += before.transpose(1, 2) @ before

    def results(self) -> dict[str, np.ndarray]:
        """float32 arrays by their path below the layer's group."""
        position = torch.arange(self.prompt_len, device=self.sum.device)
        count = self.prompt_len - position  # queries of the prompt that see the key
        if self.layer.window:
            count = count.clamp_max(self.layer.window)
        rows = self.prompt_len - SINKS
        mean = self.query_sum / rows
        covariance = self.query_outer / rows - mean[:, :, None] * mean[:, None, :]
        values = {"attention_stats/sum": self.sum, "attention_stats/sum_over_count": self.sum / count,
                  "attention_stats/sum_sq": self.sum_sq, "attention_stats/obcache_key": self.obcache_key,
                  "attention_stats/obcache_cross": self.obcache_cross, "query_stats/mean": mean, "query_stats/covariance": covariance}
        return {name: value.float().cpu().numpy() for name, value in values.items()}


def unrotated(query: torch.Tensor, start: int, layer: Layer) -> torch.Tensor:
    """Queries [Hq, rows, d] at positions start.. as they were before RoPE (and before its attention scaling)."""
    if layer.inv_freq is None:
        return query
    position = torch.arange(start, start + query.shape[1], dtype=query.dtype, device=query.device)
    angle = position[:, None] * torch.tensor(layer.inv_freq, dtype=query.dtype, device=query.device)[None, :]
    return rotate(query, -angle, layer.rope_layout, 1.0 / layer.attention_scaling)
