"""Writes a small, plausible results folder in the layout of analysis/SCHEMA.md, for the tests of the figures."""

import os

import h5py
import numpy as np

METRICS = [
    ("output_error", "relative", "lower"),
    ("attention_recall", "probability", "higher"),
    ("query_consistency", "fraction", "higher"),
    ("set_consistency", "fraction", "higher"),
    ("set_jaccard", "fraction", "higher"),
    ("set_mass_ratio", "ratio", "higher"),
    ("free_consistency", "fraction", "higher"),
    ("free_consistency_corrected", "fraction", "higher"),
    ("window_consistency", "fraction", "higher"),
    ("miss_rate", "fraction", "lower"),
    ("miss_rate_50", "fraction", "lower"),
    ("miss_rate_99", "fraction", "lower"),
    ("evidence_recall", "fraction", "higher"),
    ("resident_bytes", "bytes", "lower"),
    ("resident_union_bytes", "bytes", "lower"),
]
REFERENCES = ["full", "oracle_static", "oracle_topk", "random(seed=0)"]
SNAPKV = "snapkv(window={w},kernel={k},pool=avg,group=mean,unit=kv)"
POLICIES = [
    SNAPKV.format(w=16, k=5),
    SNAPKV.format(w=32, k=5),
    SNAPKV.format(w=64, k=5),
    "streaming_llm(sinks=4)",
    "h2o",
    "tova",
    "knorm",
    "keydiff",
    "expected_attention(future=512,sinks=4,covariance=true,vnorm=true,epsilon=0)",
    "lagkv(sinks=4,lag=128)",
    "pyramidkv(window=64,kernel=5,pool=avg,beta=20,group=mean,unit=kv)",
    f"ada(score={SNAPKV.format(w=32, k=5)},alpha=0.2,form=guarantee)",
    f"chunkkv(score={SNAPKV.format(w=64, k=5)},length=20)",
    "observed_attention",
    'external(file="/data/mine/scores.h5",dataset="/mine")',
    "compose(score=knorm,sinks=4,recent=32)",
]
MANY = (
    [SNAPKV.format(w=w, k=k) for w in (8, 16, 32, 64) for k in (1, 5, 7)]
    + POLICIES[3:11]
    + [f"ada(score={SNAPKV.format(w=32, k=5)},alpha={a},form=guarantee)" for a in (0, 0.1, 0.2, 0.5)]
    + [f"chunkkv(score={s},length={n})" for s in (SNAPKV.format(w=64, k=5), "knorm") for n in (10, 20, 40)]
)
# How close a policy's choice is to the oracle's, 0 for random and 1 for the oracle; the order is a plausible one only.
SKILL = {
    "full": 1.0,
    "oracle_topk": 1.08,
    "oracle_static": 1.0,
    "random": 0.0,
    "snapkv": 0.80,
    "streaming_llm": 0.30,
    "h2o": 0.62,
    "tova": 0.66,
    "knorm": 0.42,
    "keydiff": 0.5,
    "expected_attention": 0.72,
    "lagkv": 0.47,
    "pyramidkv": 0.78,
    "ada": 0.84,
    "chunkkv": 0.74,
    "observed_attention": 0.56,
    "external": 0.35,
    "laq": 0.84,
    "laq_pp": 0.86,
    "compose": 0.53,
}


def policy_of(spec):
    return spec.split("(")[0]


def write_results(
    folder,
    specs=None,
    references=True,
    layers=8,
    kv_heads=3,
    budgets=None,
    traces=1,
    prompt=1184,
    decode=48,
    detail=False,
    kept=False,
    seed=0,
    names=None,
    skill_shift=0.0,
):
    """Writes `folder`/results.h5 (and kept.h5) and returns the folder."""
    specs = list(POLICIES if specs is None else specs) + (REFERENCES if references else [])
    budgets = [str(b) for b in (budgets or [32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024, 2048])]
    names = names or [f"essay{i}" if traces > 1 else "essay" for i in range(traces)]
    prompts = [prompt + 97 * i for i in range(len(names))]
    os.makedirs(folder, exist_ok=True)
    table = _cells(specs, budgets, prompts, layers, kv_heads)
    values = _metric_values(table, specs, prompts, decode, seed, names, skill_shift)
    with h5py.File(os.path.join(folder, "results.h5"), "w") as file:
        _header(file, names, prompts, decode, specs, budgets, layers, kv_heads)
        _put(file, "rows", {**table, **values})
        _put(file, "layer_rows", _layer_rows(table, values))
        _put(file, "summary", _summary(table, values))
        _put(file, "failures", {"unit": [], "variant": [], "message": []})
        file.create_group("perf")
        if detail:
            _detail(file, table, values, decode, seed)
    if kept:
        _kept(folder, table, names, specs, prompts, layers, kv_heads)
    return folder


def _put(file, group, columns):
    node = file.create_group(group)
    for name, values in columns.items():
        text = isinstance(values, list) and (not values or isinstance(values[0], str))
        node.create_dataset(name, data=values, dtype=h5py.string_dtype("utf-8") if text else None)


def _header(file, names, prompts, decode, specs, budgets, layers, kv_heads):
    file.attrs.update(
        {
            "format": "kvsim-results",
            "version": "1.0",
            "tool_version": "0.1.0",
            "git_sha": "0" * 40,
            "created": "2024-01-01T00:00:00Z",
            "command_line": "kvsim run",
            "config": "",
            "seed": 0,
            "compiler": "g++ 12.2",
            "build_flags": "-O3",
            "cpu": "test",
            "device": "cpu",
            "instruction_path": "avx2",
            "threads": 2,
        }
    )
    n = len(names)
    _put(
        file,
        "traces",
        {
            "name": names,
            "path": [f"/t/{x}.h5" for x in names],
            "digest": [f"d-{x}" for x in names],
            "model": ["SmolLM2-135M-Instruct"] * n,
            "layers": np.full(n, layers),
            "query_heads": np.full(n, 3 * kv_heads),
            "kv_heads": np.full(n, kv_heads),
            "head_dim": np.full(n, 64),
            "prompt": np.array(prompts),
            "decode": np.full(n, decode),
            "dtype": ["bfloat16"] * n,
        },
    )
    automatic = np.array([s in REFERENCES for s in specs], np.uint8)
    _put(
        file,
        "variants",
        {
            "variant_id": [f"{i:016x}" for i in range(len(specs))],
            "policy": [policy_of(s) for s in specs],
            "spec": specs,
            "nested": np.ones(len(specs), np.uint8),
            "oracle": np.array(["oracle" in s for s in specs], np.uint8),
            "reference": ["a paper"] * len(specs),
            "automatic": automatic,
        },
    )
    listed = METRICS + [("projected_error", "relative", "lower")]
    _put(
        file,
        "metrics",
        {
            "name": [m[0] for m in listed],
            "unit": [m[1] for m in listed],
            "direction": [m[2] for m in listed],
            "summary": ["one line"] * len(listed),
            "level": ["row"] * len(METRICS) + ["layer"],
        },
    )
    _put(file, "policies", {"name": sorted({policy_of(s) for s in specs})})
    _put(file, "budgets", {"text": budgets})


def _cells(specs, budgets, prompts, layers, kv_heads):
    """Index columns in the row order of the schema: trace, layer, KV head, variant, budget."""
    grid = np.meshgrid(
        range(len(prompts)), range(layers), range(kv_heads), range(len(specs)), range(len(budgets)), indexing="ij"
    )
    trace, layer, head, variant, request = (g.reshape(-1).astype(np.int32) for g in grid)
    policies = sorted({policy_of(s) for s in specs})
    length = np.array(prompts)[trace]
    tokens = np.array(
        [[max(1, int(float(b[:-1]) / 100 * p)) if b.endswith("%") else int(b) for b in budgets] for p in prompts]
    )[trace, request]
    full = np.array([s == "full" for s in specs])[variant]
    held = np.where(full, length, np.minimum(tokens, length)).astype(float)
    return {
        "trace": trace,
        "policy": np.array([policies.index(policy_of(s)) for s in specs], np.int32)[variant],
        "variant": variant,
        "layer": layer,
        "kv_head": head,
        "budget_request": request,
        "budget_tokens": tokens.astype(np.int64),
        "resident_tokens": held + 24.5,
        "peak_tokens": length.astype(float),
        "evicted": length - held,
        "clamped": np.zeros(len(trace), np.uint8),
        "near_ties": np.zeros(len(trace), np.int64),
    }


def _metric_values(table, specs, prompts, decode, seed, names, shift):
    length = np.array(prompts)[table["trace"]]
    share = (length - table["evicted"]) / length
    skill = np.array(
        [
            SKILL.get(policy_of(s), 0.5)
            + 0.02 * np.sin(7.0 * i) * (policy_of(s) not in ("full", "random"))
            + shift * (s not in REFERENCES)
            for i, s in enumerate(specs)
        ]
    )[table["variant"]]
    # The same head is hard for every variant, so that paired differences are smaller than spreads.
    hard = np.stack(
        [
            np.random.default_rng([seed, *n.encode()]).normal(
                size=(table["layer"].max() + 1, table["kv_head"].max() + 1)
            )
            for n in names
        ]
    )[table["trace"], table["layer"], table["kv_head"]]
    noise = np.random.default_rng(seed + 1).normal(size=len(share))
    easy = np.exp(0.25 * hard + 0.06 * noise)
    cover = np.clip(share ** (1 - 0.75 * np.clip(skill, 0, 1.1)), 0, 1)
    error = np.clip(
        1.1 * easy * (1 - share) ** (0.6 + 0.7 * skill) * np.exp(-2.2 * skill - 1.2 * skill * share), 1e-5, None
    )
    error[table["evicted"] == 0] = 3e-8
    agree = np.clip(
        share + (1 - share) * np.clip(skill, 0, 1) * (0.85 + 0.04 * hard) + 0.01 * noise * (1 - share), 0, 1
    )
    agree[np.isclose(skill, 1.0) | (share >= 1)] = 1.0
    miss = np.clip((1 - cover) * easy * 0.9, 0, 1)
    free = np.where(share < 0.03, np.nan, np.clip(agree - 0.08 * (1 - share), 0, 1))
    held = table["resident_tokens"]
    return {
        "output_error": error,
        "attention_recall": cover,
        "query_consistency": np.clip(agree - 0.1 * (1 - share), 0, 1),
        "set_consistency": agree,
        "set_jaccard": agree / (2 - agree),
        "set_mass_ratio": np.sqrt(agree),
        "free_consistency": free,
        "free_consistency_corrected": np.clip((free - share) / np.maximum(1 - share, 1e-9), -1, 1),
        "window_consistency": np.where(skill > 0.7, agree, np.nan),
        "miss_rate": miss,
        "miss_rate_50": miss**2,
        "miss_rate_99": np.sqrt(miss),
        "evidence_recall": np.full(len(share), np.nan),
        "resident_bytes": held * 256,
        "resident_union_bytes": held * 256,
    }


def _groups(table, keys):
    """(first row of each group, group number of every row), groups in order of appearance of their sorted keys."""
    _, first, inverse = np.unique(np.stack([table[k] for k in keys], 1), axis=0, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def _layer_rows(table, values):
    keys = ("trace", "layer", "variant", "budget_request")
    first, inverse = _groups(table, keys)
    out = {
        k: table[k][first]
        for k in ("trace", "policy", "variant", "layer", "budget_request", "budget_tokens", "resident_tokens")
    }
    out["projected_error"] = np.bincount(inverse, values["output_error"]) / np.bincount(inverse)
    return out


def _summary(table, values):
    first, inverse = _groups(table, ("trace", "variant", "budget_request"))
    out = {
        k: table[k][first]
        for k in (
            "trace",
            "policy",
            "variant",
            "budget_request",
            "budget_tokens",
            "resident_tokens",
            "peak_tokens",
            "evicted",
            "clamped",
            "near_ties",
        )
    }
    order = np.argsort(inverse, kind="stable")
    cuts = np.cumsum(np.bincount(inverse))[:-1]
    for name, _, direction in METRICS:
        groups = np.stack(np.split(values[name][order], cuts))
        present = np.isfinite(groups)
        safe = np.where(present.any(1)[:, None], groups, 0.0)
        gone = ~present.any(1)
        out[f"{name}_count"] = present.sum(1)
        stats = {"mean": np.nanmean(safe, 1), "p50": np.nanquantile(safe, 0.5, axis=1)}
        tail = (
            (("p95", 0.95), ("p99", 0.99), ("max", 1.0))
            if direction == "lower"
            else (("p5", 0.05), ("p1", 0.01), ("min", 0.0))
        )
        stats.update({s: np.nanquantile(safe, q, axis=1) for s, q in tail})
        for stat, column in stats.items():
            out[f"{name}_{stat}"] = np.where(gone, np.nan, column)
    return out


def _detail(file, table, values, decode, seed):
    cell = {k: table[k] for k in ("trace", "variant", "layer", "kv_head", "budget_tokens")}
    _put(file, "detail/cell", cell)
    wave = (
        1
        + 0.25 * np.sin(np.arange(decode) / 5.0)
        + np.random.default_rng(seed).normal(size=(len(table["trace"]), decode)) * 0.2
    )
    for name in ("output_error", "miss_rate", "query_consistency"):
        file["detail"].create_dataset(
            name, data=np.maximum(values[name][:, None] * np.maximum(wave, 0.05), 1e-9).astype(np.float32)
        )


def _kept(folder, table, names, specs, prompts, layers, kv_heads):
    keys = ("trace", "variant", "budget_tokens")
    cells = np.unique(np.stack([table[k] for k in keys], 1), axis=0)
    with h5py.File(os.path.join(folder, "kept.h5"), "w") as file:
        file.attrs.update({"format": "kvsim-kept", "version": "1.0"})
        columns = {"trace": [names[t] for t in cells[:, 0]], "variant": [specs[v] for v in cells[:, 1]]}
        _put(file, "cells", {**columns, "budget_tokens": cells[:, 2]})
        for i, (trace, _, budget) in enumerate(cells[:24]):
            for layer in range(layers):
                node = file.create_group(f"kept/{i}/{layer:03d}")
                count = min(int(budget), prompts[trace])
                node.attrs["unit"] = "kv"
                node["indices"] = np.tile(np.arange(count, dtype=np.uint32), kv_heads)
                node["offsets"] = (np.arange(kv_heads + 1) * count).astype(np.uint64)
