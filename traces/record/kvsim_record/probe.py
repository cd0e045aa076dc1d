"""Finds out, from two short forward passes, what each layer's attention really does: shapes, scale, window, RoPE.

Nothing is read from the configuration where it can be seen in the computation: the rotary embedding of a layer is
found by running its attention module again with an identity rotation and comparing queries before and after.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from .capture import Call, check_mask, eager_attention, model_attention, observing, refuse_foreign
from .dtypes import SELFCHECK_BOUNDS, name_of
from .errors import RecordError

_TOKENS = 16
_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")


@dataclass
class Layer:
    """Facts of one attention layer. `inv_freq` is None without rotation; `output_proj` is [Hq*dv, hidden] or None."""

    index: int
    module: torch.nn.Module
    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    softcap: float
    window: int
    rope_layout: str = "none"
    inv_freq: np.ndarray | None = None
    attention_scaling: float = 1.0
    output_proj: torch.Tensor | None = field(default=None, repr=False)
    block: torch.nn.Module | None = field(default=None, repr=False)  # the decoder block around it

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def shape(self) -> tuple:
        return self.query_heads, self.kv_heads, self.head_dim, self.value_dim


def probe(model, token_ids) -> dict[int, Layer]:
    """All attention layers of `model` by index, ascending. Raises RecordError where the trace format does not fit."""
    refuse_by_config(model.config)
    ids = (list(token_ids) * _TOKENS)[:_TOKENS]
    ids = torch.tensor([ids], device=model.device)
    calls: dict[int, Call] = {}
    inputs: dict[int, tuple] = {}
    outputs: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        with observing(lambda call: _first_look(call, calls)):
            model(input_ids=ids, use_cache=False)
        if not calls:
            raise RecordError(f"{type(model).__name__} does not call its attention through the library's attention "
                              "interface (as latent-state, ALiBi and some older models do), so nothing can be recorded")
        hooks = [hook for layer, call in calls.items() for hook in _hooks(layer, call.module, inputs, outputs)]
        contexts: dict[int, torch.Tensor] = {}
        try:
            with observing(lambda call: _keep_output(call, contexts)):
                model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        layers = {}
        for index in sorted(calls):
            call = calls[index]
            layers[index] = Layer(index, call.module, call.query.shape[1], call.key.shape[1], call.query.shape[3],
                                  call.value.shape[3], call.scale, call.softcap, call.window)
            _find_rope(model, layers[index], call, *inputs[index])
            layers[index].output_proj = _find_projection(call.module, contexts[index], outputs[index])
            layers[index].block = _find_block(model, call.module)
    return layers


def refuse_by_config(config) -> None:
    """Refuses what the configuration already tells; everything else is seen in the computation."""
    config = config.get_text_config(decoder=True)
    name = config.model_type
    if getattr(config, "kv_lora_rank", None):
        raise RecordError(f"{name} uses latent attention (its cache holds one compressed vector for all heads), "
                          "which the trace format cannot hold")
    if getattr(config, "alibi", False) or name in ("bloom", "mpt"):
        raise RecordError(f"{name} uses ALiBi (a bias added to the logits), which the trace format cannot hold")
    if getattr(config, "is_encoder_decoder", False):
        raise RecordError(f"{name} is an encoder-decoder; a trace holds one decoder's self-attention")


def _first_look(call: Call, calls: dict) -> torch.Tensor:
    if call.layer is None:
        raise RecordError(f"{type(call.module).__name__} does not tell its layer index")
    refuse_foreign(call)
    if call.layer in calls:
        raise RecordError(f"layer {call.layer} calls attention twice in one pass (cross or double attention), "
                          "which the trace format cannot hold")
    if call.query.shape[1] % call.key.shape[1]:
        raise RecordError(f"layer {call.layer}: {call.query.shape[1]} query heads do not divide over {call.key.shape[1]} KV heads")
    if call.rows != call.seen:
        raise RecordError(f"layer {call.layer} sees {call.seen} keys for {call.rows} tokens: extra keys (memory, prefix) do not fit")
    check_mask(call)
    output = model_attention(call)
    own = eager_attention(call)
    if own is not None:
        error = float((own.float() - output.float()).norm() / own.float().norm().clamp_min(1e-30))
        if error > SELFCHECK_BOUNDS[name_of(call.query.dtype)]:
            raise RecordError(f"layer {call.layer}: the model's own attention differs from softmax(scale q.k) v "
                              f"by {error:.1e}; what it adds does not fit the trace format")
    calls[call.layer] = call
    return output


def _keep_output(call: Call, contexts: dict) -> torch.Tensor:
    contexts[call.layer] = model_attention(call)
    return contexts[call.layer]


def _hooks(layer: int, module, inputs: dict, outputs: dict):
    def before(_, args, kwargs):
        inputs[layer] = (args, kwargs)

    def after(_, args, kwargs, output):
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after, with_kwargs=True)]


def _find_projection(module, context: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """The matrix P [Hq*dv, hidden] with output = context P + bias, checked against what the module gave."""
    flat = context.reshape(context.shape[1], -1).float()
    for name in _PROJECTIONS:
        part = getattr(module, name, None)
        weight = getattr(part, "weight", None)
        if weight is None or weight.dim() != 2:
            continue
        matrix = weight.detach() if type(part).__name__ == "Conv1D" else weight.detach().t()
        if matrix.shape[0] != flat.shape[1]:
            continue
        expected = flat @ matrix.float()
        if part.bias is not None:
            expected = expected + part.bias.float()
        found = output.reshape(expected.shape).float()
        if float((found - expected).norm()) <= SELFCHECK_BOUNDS[name_of(output.dtype)] * float(found.norm()) + 1e-6:
            return matrix
    return None


def _find_block(model, module) -> torch.nn.Module | None:
    """The innermost member of a list of modules that holds `module`."""
    found = None
    for parent in model.modules():  # outer ones first
        if isinstance(parent, torch.nn.ModuleList):
            found = next((child for child in parent if any(part is module for part in child.modules())), found)
    return found


def rotate(x: torch.Tensor, angle: torch.Tensor, layout: str, scaling: float = 1.0) -> torch.Tensor:
    """Rotates the first 2*len(angle) channels of x [..., tokens, d] by angle [tokens, rotary/2]; layout half or interleaved."""
    half = angle.shape[-1]
    cos, sin = angle.cos() * scaling, angle.sin() * scaling
    part, rest = x[..., : 2 * half], x[..., 2 * half :]
    if layout == "half":
        a, b = part[..., :half], part[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
    a, b = part[..., 0::2], part[..., 1::2]
    return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2), rest], dim=-1)


def rope_tables(model) -> list[tuple[np.ndarray, float]]:
    """Every (inv_freq, attention scaling) that the model's rotary modules hold at the moment, without doubles."""
    found = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name:
                continue
            scaling = float(getattr(module, name.removesuffix("inv_freq") + "attention_scaling", 1.0))
            table = buffer.detach().float().cpu().numpy().reshape(-1)
            found[(table.tobytes(), scaling)] = (table, scaling)
    return list(found.values())


def _identity(value):
    """Position embeddings (cos, sin), or complex rotations, that leave vectors as they are; None for anything else."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, torch.Tensor) for v in value):
        return torch.ones_like(value[0]), torch.zeros_like(value[1])
    if isinstance(value, torch.Tensor) and value.is_complex():
        return torch.ones_like(value)
    return None


def _find_rope(model, layer: Layer, call: Call, args: tuple, kwargs: dict) -> None:
    args = tuple(_identity(value) or value if isinstance(value, (tuple, list)) else value for value in args)
    plain = {name: _identity(value) for name, value in kwargs.items() if name == "position_embeddings"}
    replaced = {name: value for name, value in plain.items() if value is not None}
    tables = rope_tables(model)
    if not replaced and not any(isinstance(value, tuple) for value in args):
        if tables and kwargs.get("position_embeddings") is None and _mentions_rope(model):
            raise RecordError(f"layer {layer.index}: its rotary embedding is applied where it cannot be observed")
        return
    seen: dict[int, Call] = {}

    def keep(inner: Call) -> torch.Tensor:
        seen[inner.layer] = inner
        return model_attention(inner)

    with observing(keep):
        layer.module(*args, **(kwargs | replaced))
    before = seen[layer.index]
    pairs = [(before.query[0].double(), call.query[0].double()), (before.key[0].double(), call.key[0].double())]
    bound = SELFCHECK_BOUNDS[name_of(call.query.dtype)]
    error, layout, table, scaling = _best_rotation(pairs, tables)
    unrotated = max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)
    if unrotated == 0.0:
        return
    if error > bound:
        raise RecordError(f"layer {layer.index}: its rotary embedding is of a kind the trace format cannot hold "
                          f"(best match differs by {error:.1e})")
    layer.rope_layout, layer.inv_freq, layer.attention_scaling = layout, table, scaling


def _mentions_rope(model) -> bool:
    return bool(getattr(model.config.get_text_config(decoder=True), "rope_parameters", None))


def _best_rotation(pairs, tables) -> tuple[float, str, np.ndarray | None, float]:
    best = (float("inf"), "none", None, 1.0)
    for table, scaling in tables:
        if 2 * len(table) > pairs[0][0].shape[-1]:
            continue
        tokens = torch.arange(pairs[0][0].shape[1], dtype=torch.float64, device=pairs[0][0].device)
        angle = tokens[:, None] * torch.tensor(table, dtype=torch.float64, device=tokens.device)[None, :]
        for layout in ("half", "interleaved"):
            error = max(float((rotate(a, angle, layout, scaling) - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)
            if error < best[0]:
                best = (error, layout, table, scaling)
    return best


def common_shape(layers: list[Layer]) -> None:
    """Refuses layers of different head counts or sizes: the format has one geometry per trace."""
    shapes = Counter(layer.shape for layer in layers)
    if len(shapes) > 1:
        main = shapes.most_common(1)[0][0]
        fitting = ",".join(str(layer.index) for layer in layers if layer.shape == main)
        raise RecordError(f"the layers have different head counts or sizes; record one kind at a time, e.g. --layers {fitting}")
    layouts = {layer.rope_layout for layer in layers} - {"none"}
    if len(layouts) > 1:
        raise RecordError("the layers use different rotary layouts, which the trace format cannot hold")
