"""The first pass of Lookahead Q-Cache against a plain computation from the trace itself."""

import numpy as np
import pytest
import torch
from record_reference import Trace
from transformers import AutoModelForCausalLM

OPTIONS = ("--lookahead", "5", "--lookahead-policy", "snapkv(window=8,kernel=5)", "--lookahead-budget", "24,400")


def kept_by_snapkv(trace, layer, window, kernel, budget):
    """Section by section: softmax over all prompt keys, sum over the window's rows, max-pool, best of the rest, the window."""
    attention = trace.attention(layer)[:, trace.prompt - window : trace.prompt, : trace.prompt]
    score = attention.sum(1)[:, : trace.prompt - window]
    padded = np.pad(score, ((0, 0), (kernel // 2, kernel // 2)), constant_values=-np.inf)
    pooled = np.max([padded[:, i : i + score.shape[1]] for i in range(kernel)], axis=0)
    best = np.argsort(-pooled, axis=1, kind="stable")[:, : budget - window]
    return np.concatenate([np.sort(best, 1), np.tile(np.arange(trace.prompt - window, trace.prompt), (len(score), 1))], 1)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_kept_sets_are_snapkvs(kind, run):
    trace = Trace(run(kind, *OPTIONS)[1])
    for layer in trace.layers:
        kept = trace.file[f"lookahead/snapkv-24/layers/{layer:03d}/kept"][:]
        expected = kept_by_snapkv(trace, layer, 8, 5, 24)
        differing = sum(len(set(a) - set(b)) for a, b in zip(kept, expected))
        assert differing <= 0.02 * kept.size  # ties of pooled float32 scores against double


def test_attributes_tokens_and_positions(run):
    trace = Trace(run("llama", *OPTIONS)[1])
    group = trace.file["lookahead/snapkv-24"]
    assert group.attrs["method"] == "snapkv(window=8,kernel=5,pool=max,unit=query)"
    assert (group.attrs["capacity"], group.attrs["window"], group.attrs["stopped_at_eos"]) == (24, 8, 0)
    assert group["position"][:].tolist() == list(range(trace.prompt, trace.prompt + 5))
    assert group["token"][0] == trace.ids[trace.prompt]


def test_a_budget_for_everything_gives_the_true_decode_queries(run):
    trace = Trace(run("gemma3", *OPTIONS)[1])
    group = trace.file["lookahead/snapkv-400"]
    assert group.attrs["capacity"] == trace.prompt
    assert group["token"][:].tolist() == trace.ids[trace.prompt : trace.prompt + 5]
    for layer in trace.layers:
        true = trace.get(layer, "query")[:, trace.prompt : trace.prompt + 5]
        found = group[f"layers/{layer:03d}/query"][:]
        assert np.abs(found - true).max() < 1e-4 * np.abs(true).max()


def test_pseudo_queries_are_those_of_the_model_with_the_rest_masked(run, model_folder):
    """Runs the whole model with a mask per query head that hides what was evicted, fed with the same pseudo tokens."""
    trace = Trace(run("qwen3", *OPTIONS)[1])
    group = trace.file["lookahead/snapkv-24"]
    tokens, T = group["token"][:].tolist(), trace.prompt
    model = AutoModelForCausalLM.from_pretrained(model_folder("qwen3"), attn_implementation="eager").eval()
    length = T + len(tokens)
    queries = {}
    import transformers.models.qwen3.modeling_qwen3 as code
    original = code.eager_attention_forward

    def masked(module, query, key, value, mask, **more):
        layer = module.layer_idx
        queries[layer] = query[0].double().numpy()
        hidden = torch.zeros(1, query.shape[1], length, length)
        kept = group[f"layers/{layer:03d}/kept"][:]
        for head in range(query.shape[1]):
            gone = np.setdiff1d(np.arange(T), kept[head])
            hidden[0, head, T:, gone] = float("-inf")
        return original(module, query, key, value, mask + hidden, **more)

    code.eager_attention_forward = masked
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([trace.ids[:T] + tokens]))
    finally:
        code.eager_attention_forward = original
    for layer in trace.layers:
        found = group[f"layers/{layer:03d}/query"][:]
        expected = queries[layer][:, T:]
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    full = trace.get(1, "query")[:, T:T + 5]
    assert np.abs(group["layers/001/query"][:] - full).max() > 1e-2 * np.abs(full).max()  # eviction does show


def test_it_leaves_the_recording_untouched(run, recorded):
    with_pass, plain = Trace(run("gemma3", *OPTIONS)[1]), Trace(recorded("gemma3"))
    assert with_pass.ids == plain.ids
    for layer in plain.layers:
        for name in ("query", "key", "value"):
            assert np.array_equal(with_pass.get(layer, name), plain.get(layer, name))


def test_a_token_that_ends_the_text_stops_the_pass_and_is_not_fed(run, recorded, monkeypatch):
    first = Trace(recorded("qwen3"))
    stop = first.ids[first.prompt]
    monkeypatch.setattr("kvsim_record.trace.end_tokens", lambda *_: {stop})
    trace = Trace(run("qwen3", *OPTIONS)[1])
    group = trace.file["lookahead/snapkv-24"]
    assert group.attrs["stopped_at_eos"] == 1 and group["token"].shape == (0,)
    assert group["layers/000/query"].shape == (6, 0, 16) and group["layers/000/kept"].shape == (6, 24)


def test_several_policies_and_budgets_in_one_recording(run):
    """streaming_llm keeps the first and the newest tokens; a pass without eviction gives the true decode queries."""
    options = ["--lookahead", "4", "--lookahead-budget", "24,60"]
    for spec in ("snapkv(window=8)", "streaming_llm(sinks=3)", "full"):
        options += ["--lookahead-policy", spec]
    trace = Trace(run("gemma3", *options)[1])
    T, passes = trace.prompt, trace.file["lookahead"]
    assert set(passes) == {"snapkv-24", "snapkv-60", "streaming_llm-24", "streaming_llm-60", "full"}
    for budget in (24, 60):
        group = passes[f"streaming_llm-{budget}"]
        assert (group.attrs["method"], group.attrs["capacity"], group.attrs["window"]) == ("streaming_llm(sinks=3)", budget, 0)
        for layer in trace.layers:
            expected = [[0, 1, 2, *range(T - budget + 3, T)]] * 2
            assert group[f"layers/{layer:03d}/kept"][:].tolist() == expected
    assert passes["full"].attrs["capacity"] == T
    assert passes["full/token"][:].tolist() == trace.ids[T : T + 4]
    for layer in trace.layers:
        true = trace.get(layer, "query")[:, T : T + 4]
        assert np.abs(passes[f"full/layers/{layer:03d}/query"][:] - true).max() < 1e-4 * np.abs(true).max()


def test_each_pass_tells_what_it_cost(run):
    """Bytes by hand: float32, 3 layers, d = dv = 16; SnapKV holds a cache per query head (6), the others per KV head (2)."""
    options = ["--lookahead", "4", "--lookahead-budget", "40", "--lookahead-policy", "snapkv(window=8)", "--lookahead-policy", "streaming_llm"]
    trace = Trace(run("llama", *options)[1])
    for name, units in (("snapkv-40", 6), ("streaming_llm-40", 2)):
        attributes = trace.file[f"lookahead/{name}"].attrs
        assert attributes["steps"] == 4
        assert attributes["cache_bytes"] == 3 * units * (40 + 4) * (16 + 16) * 4


def test_the_first_pseudo_query_is_the_first_decode_query_in_the_first_layer(run):
    trace = Trace(run("qwen3", *OPTIONS)[1])
    group, T = trace.file["lookahead/snapkv-24"], trace.prompt
    assert group["token"][0] == trace.ids[T]
    assert np.array_equal(group["layers/000/query"][:, 0], trace.get(0, "query")[:, T])
    assert not np.array_equal(group["layers/002/query"][:, 0], trace.get(2, "query")[:, T])
