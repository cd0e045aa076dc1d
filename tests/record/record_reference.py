"""Plain references in double precision, written from the trace format's text and sharing no code with the recorder."""

import sys

import h5py
import numpy as np
import torch
from transformers import AutoModelForCausalLM


class Trace:
    """Reads a trace with h5py alone."""

    def __init__(self, path):
        self.file = h5py.File(path, "r")
        self.attrs = self.file.attrs
        self.prompt, self.decode = int(self.attrs["prompt_len"]), int(self.attrs["decode_len"])
        self.layers = sorted(int(name) for name in self.file["layers"])
        self.ids = self.file["tokens/id"][:].tolist()
        self.texts = [text.decode() for text in self.file["tokens/text"][:]]

    def group(self, layer):
        return self.file[f"layers/{layer:03d}"]

    def get(self, layer, name):
        return self.group(layer)[name][:].astype(np.float64)

    def fact(self, layer, name):
        return self.group(layer).attrs.get(name, self.attrs.get(name))

    def inv_freq(self, layer):
        group = self.group(layer)
        owner = group if "rope" in group else self.file
        return owner["rope/inv_freq"][:].astype(np.float64) if "rope" in owner else None

    def segments(self, kind):
        kinds = [k.decode() for k in self.file["segments/kind"][:]]
        rows = zip(self.file["segments/begin"][:], self.file["segments/end"][:], kinds, self.file["segments/turn"][:])
        return [(int(b), int(e), int(t)) for b, e, k, t in rows if k == kind]

    def text(self, begin, end):
        return "".join(self.texts[begin:end])

    def attention(self, layer):
        """[Hq, Nq, T+S] of the recorded queries."""
        query, key = self.get(layer, "query"), self.get(layer, "key")
        position = self.group(layer)["query_position"][:]
        key = np.repeat(key, query.shape[0] // key.shape[0], axis=0)
        logits = self.fact(layer, "softmax_scale") * query @ key.transpose(0, 2, 1)
        cap, window = self.fact(layer, "logit_softcap"), self.group(layer).attrs["sliding_window"]
        if cap:
            logits = cap * np.tanh(logits / cap)
        j = np.arange(key.shape[1])[None, :]
        hidden = j > position[:, None]
        if window:
            hidden |= j <= position[:, None] - window
        logits[:, hidden] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def output(self, layer):
        """[Hq, Nq, dv] attention outputs of the recorded queries."""
        attention, value = self.attention(layer), self.get(layer, "value")
        return attention @ np.repeat(value, attention.shape[0] // value.shape[0], axis=0)


def rotate(x, position, inv_freq, layout, scaling=1.0):
    """RoPE of x [.., n, d] at `position` [n] as the literature writes it, pair by pair."""
    x, half = x.copy(), len(inv_freq)
    angle = position[:, None] * inv_freq[None, :]
    cos, sin = np.cos(angle) * scaling, np.sin(angle) * scaling
    for i in range(half):
        a, b = (i, i + half) if layout == "half" else (2 * i, 2 * i + 1)
        first, second = x[..., a].copy(), x[..., b].copy()
        x[..., a] = first * cos[:, i] - second * sin[:, i]
        x[..., b] = second * cos[:, i] + first * sin[:, i]
    return x


def model_run(folder, ids):
    """Runs the model with its own unfused attention; per layer the attention outputs [n, Hq*dv] and the queries before RoPE."""
    outputs, before, logits = model_run_with_keys(folder, ids)
    return outputs, [query for query, _ in before], logits


def model_run_with_keys(folder, ids):
    """Likewise, with a pair (queries, keys) before RoPE for every layer that rotates."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    outputs, before, hidden = {}, [], {}
    hooks = []
    for name, module in model.named_modules():
        if getattr(module, "layer_idx", None) is None or not type(module).__name__.endswith("Attention"):
            continue
        project = next(getattr(module, n) for n in ("o_proj", "dense", "c_proj") if hasattr(module, n))
        layer = module.layer_idx
        hooks.append(project.register_forward_pre_hook(lambda _, args, layer=layer: outputs.__setitem__(layer, args[0][0].double().numpy())))
    code = sys.modules[type(model).__module__]
    original = getattr(code, "apply_rotary_pos_emb", None)
    if original is not None:
        def watch(q, k, *args, **kwargs):
            before.append((q[0].double().numpy(), k[0].double().numpy()))
            return original(q, k, *args, **kwargs)
        code.apply_rotary_pos_emb = watch
    try:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    finally:
        if original is not None:
            code.apply_rotary_pos_emb = original
    return outputs, before, logits
