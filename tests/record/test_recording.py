"""What is recorded, and in which form: windows, statistics, optional tensors, precisions, early ends."""

import re

import h5py
import numpy as np
import pytest
import torch
from tiny_models import TEXT
from record_reference import Trace, model_run, model_run_with_keys, rotate

from kvsim_record.digest import file_digest

SINKS = 4


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_a_windowed_recording_is_the_end_of_the_full_one(kind, run, recorded):
    full, part = Trace(recorded(kind)), Trace(run(kind, "--queries", "window:16")[1])
    assert part.ids == full.ids
    for layer in full.layers:
        positions = part.group(layer)["query_position"][:]
        assert positions.tolist() == list(range(full.prompt - 16, full.prompt + full.decode))
        assert np.array_equal(part.get(layer, "query"), full.get(layer, "query")[:, positions])
        for name in ("key", "value"):
            assert np.array_equal(part.get(layer, name), full.get(layer, name))


@pytest.mark.parametrize("kind", ["llama_yarn", "gemma3", "glm", "bigcode"])
def test_statistics_equal_brute_force(kind, run):
    trace = Trace(run(kind, "--stats")[1])
    T = trace.prompt
    for layer in trace.layers:
        attention = trace.attention(layer)[:, :T, :T]
        window = int(trace.group(layer).attrs["sliding_window"]) or T
        counts = np.array([sum(1 for p in range(T) if j <= p < j + window) for j in range(T)])
        assert np.allclose(trace.get(layer, "attention_stats/sum"), attention.sum(1), rtol=1e-4, atol=1e-6)
        assert np.allclose(trace.get(layer, "attention_stats/sum_over_count"), attention.sum(1) / counts, rtol=1e-4, atol=1e-6)
        assert np.allclose(trace.get(layer, "attention_stats/sum_sq"), (attention**2).sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama_yarn", "gemma2"])
def test_obcache_sums_are_the_damage_of_driving_a_logit_to_zero(kind, run):
    """sum_sq |v|^2 + key + cross must be the sum over the prompt's queries of | a v + a s (v - o) |^2 (arXiv 2510.07651)."""
    trace = Trace(run(kind, "--stats")[1])
    T = trace.prompt
    for layer in trace.layers:
        attention, query, key, value = (trace.attention(layer)[:, :T, :T], trace.get(layer, "query")[:, :T],
                                        trace.get(layer, "key")[:, :T], trace.get(layer, "value")[:, :T])
        copies = query.shape[0] // key.shape[0]
        key, value = np.repeat(key, copies, 0), np.repeat(value, copies, 0)
        logits = trace.fact(layer, "softmax_scale") * query @ key.transpose(0, 2, 1)
        cap = trace.fact(layer, "logit_softcap")
        logits = cap * np.tanh(logits / cap) if cap else logits
        for head in range(query.shape[0]):
            output = attention[head] @ value[head]
            joint, key_part = np.zeros(T), np.zeros(T)
            for row in range(T):
                a, s = attention[head, row][:, None], np.where(attention[head, row] > 0, logits[head, row], 0)[:, None]
                change = a * s * (value[head] - output[row])
                key_part += (change**2).sum(1)
                joint += ((a * value[head] + change) ** 2).sum(1)
            stored = {name: trace.get(layer, f"attention_stats/{name}")[head] for name in ("sum_sq", "obcache_key", "obcache_cross")}
            assert np.allclose(stored["obcache_key"], key_part, rtol=1e-3, atol=1e-5 * key_part.max())
            found = stored["sum_sq"] * (value[head] ** 2).sum(1) + stored["obcache_key"] + stored["obcache_cross"]
            assert np.allclose(found, joint, rtol=1e-3, atol=1e-5 * joint.max())


@pytest.mark.parametrize("kind", ["llama", "llama_yarn", "qwen3", "gemma3", "glm", "smollm3"])
def test_queries_and_keys_turned_back_by_the_recorded_table_are_the_models_own(kind, run, recorded, model_folder):
    """Rotating by minus the position, with 1 / attention_scaling, gives what the model had before RoPE (after its norms)."""
    trace = Trace(recorded(kind))
    _, before, _ = model_run_with_keys(model_folder(kind), trace.ids)
    position = np.arange(trace.prompt + trace.decode)
    rotating = iter(before)
    for layer in trace.layers:
        table = trace.inv_freq(layer)
        if not table.any():
            continue  # a layer without rotation
        scaling, layout = trace.fact(layer, "attention_scaling"), trace.attrs["rope_layout"]
        for name, expected in zip(("query", "key"), next(rotating)):
            found = rotate(trace.get(layer, name), -position, table, layout, 1 / scaling)
            rest = 2 * len(table)
            assert np.abs(found[..., :rest] - expected[..., :rest]).max() < 1e-4 * np.abs(expected).max()
            assert np.abs(found[..., rest:] - expected[..., rest:]).max(initial=0) < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["llama", "llama_yarn", "gemma3", "glm"])
def test_query_statistics_are_of_the_models_plain_queries_without_the_sinks(kind, run, model_folder):
    trace = Trace(run(kind, "--stats", "--queries", "window:8")[1])
    _, before, _ = model_run(model_folder(kind), trace.ids)
    for layer in trace.layers:
        plain = before[layer][:, SINKS : trace.prompt]
        mean = plain.mean(1)
        covariance = np.stack([np.cov(head, rowvar=False, bias=True) for head in plain])
        assert np.allclose(trace.get(layer, "query_stats/mean"), mean, rtol=1e-3, atol=1e-4 * np.abs(plain).max())
        assert np.allclose(trace.get(layer, "query_stats/covariance"), covariance, rtol=1e-3, atol=1e-4 * np.abs(covariance).max())
        assert trace.group(layer)["query_stats"].attrs["sinks"] == SINKS


@pytest.mark.parametrize("window", [None, 10])
def test_recorded_attention_equals_the_softmax_of_what_is_stored(window, run):
    options = ["--attention"] + (["--queries", f"window:{window}"] if window else [])
    trace = Trace(run("gemma2", *options)[1])
    for layer in trace.layers:
        assert np.abs(trace.get(layer, "attention") - trace.attention(layer)).max() < 1e-5


def test_hidden_states_are_the_attention_blocks_inputs(run, model_folder):
    trace = Trace(run("llama", "--hidden", "--final-hidden")[1])
    _, _, output = model_run(model_folder("llama"), trace.ids)
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    with torch.no_grad():
        for layer in trace.layers:
            expected = model.model.layers[layer].input_layernorm(output.hidden_states[layer])[0].double().numpy()
            assert np.abs(trace.get(layer, "hidden") - expected).max() < 1e-4 * np.abs(expected).max()
    last = output.hidden_states[-1][0].double().numpy()  # the library hands this one out after the final norm
    assert np.abs(trace.file["final_hidden"][:] - last).max() < 1e-4 * np.abs(last).max()


@pytest.mark.parametrize("kind", ["qwen3", "bigcode"])
def test_output_projection_maps_head_outputs_to_the_blocks_output(kind, run, model_folder):
    trace = Trace(run(kind, "--output-proj", "0,2")[1])
    assert "output_proj" not in trace.group(1)
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(model_folder(kind))
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_hook(lambda m, _, out: found.__setitem__(m.layer_idx, out[0][0].detach().double().numpy()))
    with torch.no_grad():
        model(input_ids=torch.tensor([trace.ids]))
    for layer in (0, 2):
        heads = trace.output(layer)
        flat = heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)
        block = found[layer]
        assert np.abs(flat @ trace.get(layer, "output_proj") - block).max() < 1e-4 * np.abs(block).max()


def test_a_layer_subset_holds_just_those_layers(run, recorded):
    full, part = Trace(recorded("llama")), Trace(run("llama", "--layers", "0,2")[1])
    assert part.layers == [0, 2] and part.attrs["num_layers"] == 3
    assert np.array_equal(part.get(2, "key"), full.get(2, "key"))


@pytest.mark.parametrize("dtype,size", [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_precisions_are_stored_as_computed_and_read_by_plain_h5py(dtype, size, run, model_folder):
    code, path = run("multi_query", "--dtype", dtype)
    assert code == 0
    trace = Trace(path)
    data = trace.group(0)["key"]
    assert data.id.get_type().get_size() == size
    values = data[:].astype(np.float32)
    assert np.isfinite(values).all() and values.std() > 0.1
    exact = torch.tensor(values).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(values, exact)  # nothing was rounded on the way, nothing is a bit pattern
    outputs, _, _ = model_run(model_folder("multi_query"), trace.ids)
    coarse = {"float16": 0.02, "bfloat16": 0.15, "float32": 1e-4}[dtype]
    expected = outputs[0].reshape(len(trace.ids), 6, -1).transpose(1, 0, 2)
    assert np.abs(trace.output(0) - expected).max() < coarse * np.abs(expected).max()


def test_datasets_are_contiguous(recorded):
    def check(_, item):
        if isinstance(item, h5py.Dataset):
            assert item.chunks is None and item.compression is None

    Trace(recorded("gemma3")).file.visititems(check)


def test_self_check_and_digest_stand_in_the_file(recorded):
    trace = Trace(recorded("qwen3"))
    assert 0 < trace.attrs["selfcheck_max_error"] < 1e-5 < trace.attrs["selfcheck_bound"]
    assert trace.attrs["selfcheck_count"] >= 3 * 6 * 8
    assert trace.attrs["digest"] == file_digest(trace.file)


def test_the_same_command_gives_the_same_digest(run, recorded):
    assert Trace(run("gemma3")[1]).attrs["digest"] == Trace(recorded("gemma3")).attrs["digest"]


def test_long_prompts_are_fed_in_chunks_with_the_same_result(run, recorded, monkeypatch):
    whole = Trace(run("gemma3", "--stats", "--hidden", "--final-hidden", name="whole.h5")[1])
    monkeypatch.setattr("kvsim_record.recorder._CHUNK", 50)
    monkeypatch.setattr("kvsim_record.capture._BLOCK_BYTES", 20000)
    parts = Trace(run("gemma3", "--stats", "--hidden", "--final-hidden")[1])
    assert parts.ids == whole.ids
    last = whole.file["final_hidden"][:]
    assert np.abs(parts.file["final_hidden"][:] - last).max() < 1e-4 * np.abs(last).max()
    for layer in whole.layers:
        for name in ("query", "key", "hidden", "attention_stats/sum", "query_stats/covariance"):
            expected = whole.get(layer, name)
            assert np.abs(parts.get(layer, name) - expected).max() < 1e-4 * np.abs(expected).max(), name


def test_an_early_end_leaves_a_smaller_valid_trace(run, recorded, monkeypatch):
    stop = Trace(recorded("qwen3")).ids[len(TEXT.encode()) + 5]
    assert stop not in Trace(recorded("qwen3")).ids[len(TEXT.encode()) : len(TEXT.encode()) + 5]
    monkeypatch.setattr("kvsim_record.trace.end_tokens", lambda *_: {stop})
    code, path = run("qwen3", "--respect-eos", "--attention", "--hidden")
    assert code == 0
    full, part = Trace(recorded("qwen3")), Trace(path)
    assert part.decode == 5 and part.ids == full.ids[: part.prompt + 5]
    n = part.prompt + 5
    for layer in part.layers:
        for name in ("query", "key", "value"):
            assert np.array_equal(part.get(layer, name), full.get(layer, name)[:, :n])
        assert np.abs(part.get(layer, "attention") - part.attention(layer)).max() < 1e-5
        assert part.get(layer, "hidden").shape == (n, 48)
    assert part.segments("answer") == [(part.prompt, n, 0)]
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix != ".txt"] == ["t.h5"]


def test_a_given_answer_is_fed_instead_of_the_models_own(run, recorded, model_folder, tmp_path):
    own = Trace(recorded("llama"))
    answer = tmp_path / "answer.txt"
    answer.write_text("It lay under the stone.")
    given = Trace(run("llama", "--continue", str(answer), decode=None)[1])
    assert given.text(given.prompt, given.prompt + given.decode) == "It lay under the stone."
    assert given.attrs["decoding"] == "given" and own.attrs["decoding"] == "greedy"
    outputs, _, _ = model_run(model_folder("llama"), given.ids)
    for layer in given.layers:
        found = given.output(layer)
        expected = outputs[layer].reshape(found.shape[1], found.shape[0], -1).transpose(1, 0, 2)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()



def test_decode_cuts_a_given_answer(run, tmp_path):
    answer = tmp_path / "answer.txt"
    answer.write_text("It lay under the stone.")
    trace = Trace(run("llama", "--continue", str(answer), decode=6)[1])
    assert trace.text(trace.prompt, trace.prompt + trace.decode) == "It lay"


def test_sampling_follows_its_seed(run):
    options = ("--sample", "--temperature", "1.5", "--top-p", "0.95")
    texts = [Trace(run("llama", *options, "--seed", seed, name=f"{i}.h5")[1]).ids for i, seed in enumerate("112")]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_decoding_takes_the_likeliest_token(recorded, model_folder):
    trace = Trace(recorded("multi_query"))
    _, _, output = model_run(model_folder("multi_query"), trace.ids)
    likeliest = output.logits[0, trace.prompt - 1 : -1].argmax(-1).tolist()
    assert trace.ids[trace.prompt :] == likeliest


@pytest.mark.parametrize("options", [(), ("--stats", "--attention", "--hidden", "--final-hidden", "--output-proj"), ("--lookahead", "4", "--lookahead-budget", "40,90")])
def test_the_size_printed_first_bounds_the_file(options, run, capsys):
    _, path = run("gemma3", *options)
    printed = float(re.search(r"size: at most ([\d.]+) MiB", capsys.readouterr().err).group(1))
    assert path.stat().st_size <= (printed + 0.05) * 2**20
