"""Stands in for the model's attention function, so that queries, keys and values are seen exactly as attention reads them.

`transformers` calls attention through a registry (AttentionInterface). The function registered here runs the
model's own attention and shows its inputs and its output to an observer. Query and key arrive after RoPE and after any
norm; keys and values are those of the whole cache and not yet repeated for grouped heads.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .errors import RecordError

IMPLEMENTATION = "kvsim_record"
_BLOCK_BYTES = 64 << 20  # of attention logits held at once where probabilities are needed
# Arguments that change attention in ways the format has no place for.
_FOREIGN = {"s_aux": "learned sink logits", "sinks": "learned sink logits", "position_bias": "a position bias",
            "alibi": "ALiBi", "attention_bias": "an attention bias"}


@dataclass
class Call:
    """One call of a layer's attention. Shapes: query [1, Hq, rows, d], key [1, Hkv, seen, d], value [1, Hkv, seen, dv]."""

    module: torch.nn.Module
    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scale: float
    softcap: float
    window: int
    extra: dict = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.query.shape[2]

    @property
    def seen(self) -> int:
        return self.key.shape[2]

    @property
    def start(self) -> int:
        """Position of the first query row."""
        return self.seen - self.rows


_observer = None


@contextmanager
def observing(observer):
    """While active, `observer(call)` computes every attention of a registered model and returns [1, rows, Hq, dv]."""
    global _observer
    previous, _observer = _observer, observer
    try:
        yield observer
    finally:
        _observer = previous


def _attention(module, query, key, value, attention_mask=None, dropout=0.0, scaling=None, **extra):
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    call = Call(module=module, layer=getattr(module, "layer_idx", None), query=query, key=key, value=value,
                mask=attention_mask, scale=scale, softcap=float(extra.get("softcap") or 0.0),
                window=_declared_window(module, extra), extra=extra)
    output = model_attention(call) if _observer is None else _observer(call)
    return output, None


def register() -> None:
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _declared_window(module, extra: dict) -> int:
    if "sliding_window" in extra:
        return int(extra["sliding_window"] or 0)
    if getattr(module, "is_sliding", True):
        return int(getattr(module, "sliding_window", None) or 0)
    return 0


def model_attention(call: Call) -> torch.Tensor:
    """The model's own attention output [1, rows, Hq, dv]: the fused kernel, or the model's own code where it caps logits."""
    if call.softcap:
        return eager_attention(call)
    extra = {name: value for name, value in call.extra.items() if name != "sliding_window"}
    return sdpa_attention_forward(call.module, call.query, call.key, call.value, call.mask, scaling=call.scale, **extra)[0]


def eager_attention(call: Call) -> torch.Tensor | None:
    """What the model's own unfused attention function gives, in blocks of rows; None where the model has none."""
    own = getattr(sys.modules[type(call.module).__module__], "eager_attention_forward", None)
    if own is None:
        return None
    visible = visible_keys(call.start, call.rows, call.seen, 0, call.query.device) if call.mask is None else call.mask
    parts = []
    step = _rows_at_once(call.query.shape[1], call.seen)
    for begin in range(0, call.rows, step):
        mask = visible[..., begin : begin + step, : call.seen]
        if mask.dtype == torch.bool:
            lowest = torch.finfo(call.query.dtype).min
            mask = torch.zeros(mask.shape, dtype=call.query.dtype, device=mask.device).masked_fill(~mask, lowest)
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
        query = call.query[:, :, begin : begin + step]
        parts.append(own(call.module, query, call.key, call.value, mask, scaling=call.scale, **call.extra)[0])
    return torch.cat(parts, dim=1)


def _rows_at_once(heads: int, seen: int) -> int:
    return max(1, _BLOCK_BYTES // (4 * heads * seen))


def visible_keys(start: int, rows: int, seen: int, window: int, device) -> torch.Tensor:
    """Boolean [rows, seen]: which keys the queries at positions start.. may read (window 0 = all that came before)."""
    position = torch.arange(start, start + rows, device=device)[:, None]
    key = torch.arange(seen, device=device)[None, :]
    visible = key <= position
    return visible & (key > position - window) if window else visible


def masked_logits(query, key, start, scale, softcap, window, dtype=torch.float32):
    """Yields (first row, logits [Hq, block, seen]) in blocks of rows, -inf where a query cannot see a key.

    query [Hq, rows, d], key [Hkv, seen, d]; query head h reads KV head h // (Hq / Hkv).
    """
    heads, rows, size = query.shape
    kv_heads, seen, _ = key.shape
    key = key.to(dtype)
    step = _rows_at_once(heads, seen)
    for begin in range(0, rows, step):
        block = query[:, begin : begin + step].to(dtype)
        count = block.shape[1]
        logits = torch.matmul(block.reshape(kv_heads, -1, size), key.transpose(1, 2)).reshape(heads, count, seen) * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        visible = visible_keys(start + begin, count, seen, window, key.device)
        yield begin, logits.masked_fill_(~visible, float("-inf"))


def probabilities(query, key, start, scale, softcap, window, dtype=torch.float32):
    """Yields (first row, attention [Hq, block, seen]) of the exact softmax, in blocks of rows."""
    for begin, logits in masked_logits(query, key, start, scale, softcap, window, dtype):
        yield begin, torch.softmax(logits, dim=-1)


def attend(attention: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Outputs [Hq, rows, dv] of attention [Hq, rows, seen] over values [Hkv, seen, dv]."""
    heads, rows, seen = attention.shape
    return torch.matmul(attention.reshape(value.shape[0], -1, seen), value).reshape(heads, rows, -1)


def refuse_foreign(call: Call) -> None:
    """Refuses attention with terms beside scaled, capped and causally masked q.k."""
    for name, meaning in _FOREIGN.items():
        if call.extra.get(name) is not None or (name == "sinks" and getattr(call.module, "sinks", None) is not None):
            raise RecordError(f"layer {call.layer} uses {meaning}, which the trace format cannot hold")


def check_mask(call: Call) -> None:
    """Refuses a mask that is anything but causal with the layer's sliding window."""
    expected = visible_keys(call.start, call.rows, call.seen, call.window, call.query.device)
    if call.mask is None:
        fine = bool(expected.all()) if call.rows == 1 else call.start == 0 and (not call.window or call.seen <= call.window)
    else:
        mask = call.mask[..., : call.seen]
        if mask.dtype != torch.bool:
            if bool((mask[mask > torch.finfo(mask.dtype).min / 2] != 0).any()):
                raise RecordError(f"layer {call.layer} adds a bias to its logits (ALiBi or a relative position bias), "
                                  "which the trace format cannot hold")
            mask = mask == 0
        fine = bool((mask == expected).all())
    if not fine:
        raise RecordError(f"layer {call.layer} does not attend causally (with a sliding window of {call.window}): "
                          "chunked, bidirectional and prefix attention do not fit the trace format")
