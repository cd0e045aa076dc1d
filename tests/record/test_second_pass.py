"""The second pass over the prompt against a naive run of the whole model, and what it leaves untouched."""

import re
import sys

import numpy as np
import pytest
import torch
from record_reference import Trace
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvsim_record import second_pass
from kvsim_record.digest import file_digest

STATISTICS = {"kvzip", "kvzip_plus", "kvcompose_max", "kvcompose_mean"}
FIRST, NEXT = "\n\nRepeat the previous context exactly.", "\n\nRepeat the part of the previous context exactly, starting with"


def whole_run(folder, ids):
    """One forward pass over `ids` with the model's own unfused attention; per layer the weights [Hq, n, n], the attention
    blocks' inputs [n, hidden], the values [Hkv, n, dv] and the output projection [hidden, Hq*dv]."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    code = sys.modules[type(model).__module__]
    original, weights, inputs, values, outputs, logits = code.eager_attention_forward, {}, {}, {}, {}, {}

    def watch(module, query, key, value, mask, **more):
        output, attention = original(module, query, key, value, mask, **more)
        weights[module.layer_idx], values[module.layer_idx] = attention[0].double().numpy(), value[0].double().numpy()
        return output, attention

    code.eager_attention_forward = watch
    for module in model.modules():
        if type(module).__name__.endswith("Attention") and getattr(module, "layer_idx", None) is not None:
            module.register_forward_pre_hook(lambda m, args, kwargs: inputs.__setitem__(m.layer_idx, kwargs["hidden_states"][0].double().numpy()),
                                             with_kwargs=True)
            outputs[module.layer_idx] = module.o_proj.weight.detach().double().numpy()
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
    finally:
        code.eager_attention_forward = original
    return {layer: (weights[layer], inputs[layer], values[layer], outputs[layer]) for layer in weights}


def expected(trace, folder, piece_size, prefix=0, suffix="\n"):
    """Statistics by layer, from whole passes over prompt + piece: a softmax over fewer keys is the same weights, renormalised."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    T, prompt = trace.prompt, trace.ids[: trace.prompt]
    found = {layer: {name: np.zeros((int(trace.attrs["num_query_heads"]), T)) for name in STATISTICS} for layer in trace.layers}
    fed, begin = [], prefix
    while begin < T:
        end = min(begin + piece_size, T)
        ask = encode(FIRST) if begin == prefix else encode(NEXT) + prompt[begin - 8 : begin]
        tokens = ask + encode(suffix) + prompt[begin:end]
        fed += tokens
        sinks = min(4, begin)
        for layer, (weights, inputs, values, project) in whole_run(folder, prompt + tokens).items():
            columns = list(range(sinks)) + list(range(begin, end)) + list(range(T, T + len(tokens)))
            reduced = weights[:, T:][:, :, columns]
            reduced = (reduced / reduced.sum(-1, keepdims=True))[:, :, sinks : sinks + end - begin]
            found[layer]["kvzip"][:, begin:end] = reduced.max(1)
            heads, dv = weights.shape[0], values.shape[2]
            for head in range(heads):
                written = values[head * values.shape[0] // heads, begin:end] @ project[:, head * dv : (head + 1) * dv].T
                size = np.linalg.norm(inputs[T:], axis=1)
                asks = size > 0  # the template's end is the padding token, whose embedding is zero
                weighted = reduced[head][asks] * np.linalg.norm(written, axis=1) / size[asks, None]
                found[layer]["kvzip_plus"][head, begin:end] = weighted.max(0)
        begin = end
    for layer, (weights, *_) in whole_run(folder, prompt + prompt).items():
        found[layer]["kvcompose_max"], found[layer]["kvcompose_mean"] = weights[:, T:, :T].max(1), weights[:, T:, :T].mean(1)
    return found, fed


@pytest.mark.parametrize("kind,piece", [("llama", 2048), ("qwen3", 60), ("gemma3", 90)])
def test_statistics_equal_a_naive_run_of_the_model(kind, piece, run, model_folder, monkeypatch):
    monkeypatch.setattr("kvsim_record.second_pass.PIECE", piece)
    monkeypatch.setattr("kvsim_record.capture._BLOCK_BYTES", 200000)
    trace = Trace(run(kind, "--second-pass", "repeat")[1])
    found, fed = expected(trace, model_folder(kind), piece)
    assert trace.file["second_pass/token"][:].tolist() == fed
    for layer in trace.layers:
        assert set(trace.group(layer)["second_pass"]) == STATISTICS
        for name in STATISTICS:
            table = trace.group(layer)[f"second_pass/{name}"]
            assert table.dtype == np.float32 and table.shape == (6, trace.prompt)
            assert np.allclose(table[:], found[layer][name], rtol=2e-3, atol=1e-5), (layer, name)


def test_the_template_before_the_text_is_not_repeated_and_its_end_is(run, model_folder):
    trace = Trace(run("llama", "--instruct", "--second-pass", "repeat")[1])
    prefix = trace.file["second_pass"].attrs["prefix"]
    assert trace.text(0, prefix) == "<|user|>"
    found, fed = expected(trace, model_folder("llama"), 2048, prefix=prefix, suffix="<|end|><|assistant|>")
    assert trace.file["second_pass/token"][:].tolist() == fed
    assert not trace.get(0, "second_pass/kvzip")[:, :prefix].any()
    for layer in trace.layers:
        for name in STATISTICS:
            assert np.allclose(trace.get(layer, f"second_pass/{name}"), found[layer][name], rtol=2e-3, atol=1e-5), (layer, name)


def test_it_leaves_the_recording_untouched_and_is_part_of_the_digest(run, recorded):
    with_pass, plain = Trace(run("gemma3", "--second-pass", "repeat", "--lookahead", "3", "--lookahead-budget", "40")[1]), Trace(recorded("gemma3"))
    assert with_pass.ids == plain.ids
    for layer in plain.layers:
        for name in ("query", "key", "value"):
            assert np.array_equal(with_pass.get(layer, name), plain.get(layer, name))
    assert with_pass.attrs["digest"] == file_digest(with_pass.file) != plain.attrs["digest"]


def test_attributes_say_what_was_run(run):
    trace = Trace(run("llama", "--second-pass", "repeat", "--lookahead", "2", "--lookahead-budget", "40", "--layers", "1")[1])
    attributes, lookahead = trace.file["second_pass"].attrs, trace.file["lookahead/snapkv-40"].attrs
    assert (attributes["method"], attributes["pieces"], attributes["piece"], attributes["sinks"], attributes["prefix"]) == ("repeat", 1, 2048, 4, 0)
    assert attributes["prompt"] == lookahead["prompt"] and attributes["model"] == lookahead["model"] == trace.attrs["model"]
    assert trace.layers == [1] and "second_pass" in trace.group(1)


def test_the_prompts_hash_is_the_digest_of_its_ids(tmp_path):
    import h5py
    ids = list(range(700))
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["tokens/id"] = np.array(ids, dtype="<i4")
        assert second_pass.origin("m", ids) == {"model": "m", "prompt": file_digest(file)}


def test_a_prompt_too_long_to_be_read_twice_is_refused(run, capsys):
    code, path = run("llama", "--second-pass", "repeat", text="word " * 300)
    assert code == 2 and not path.exists()
    assert "--second-pass: reads the prompt again, up to position" in capsys.readouterr().err


def test_the_size_printed_first_bounds_the_file(run, capsys):
    _, path = run("gemma3", "--second-pass", "repeat")
    printed = float(re.search(r"size: at most ([\d.]+) MiB", capsys.readouterr().err).group(1))
    assert path.stat().st_size <= (printed + 0.05) * 2**20
