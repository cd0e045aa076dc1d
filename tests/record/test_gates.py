"""Retention gates: what is stored follows the formula, and files that do not fit are refused in one line."""

import numpy as np
import pytest
import torch
from record_reference import Trace
from safetensors.torch import save_file

HIDDEN, KV_HEADS, LAYERS, WIDTH = 48, 2, 3, 5


def seeded(layers=range(LAYERS), hidden=HIDDEN, kv_heads=KV_HEADS, dtype=np.float32):
    random = np.random.default_rng(5)
    arrays = {}
    for layer in layers:
        arrays[f"layers.{layer}.up.weight"] = random.normal(size=(WIDTH, hidden)).astype(dtype)
        arrays[f"layers.{layer}.up.bias"] = random.normal(size=WIDTH).astype(dtype)
        arrays[f"layers.{layer}.down.weight"] = random.normal(size=(kv_heads, WIDTH)).astype(dtype)
        arrays[f"layers.{layer}.bias"] = np.full(kv_heads, 2.0, dtype=dtype)
    return arrays


def safetensors(path, arrays, **metadata):
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, str(path), metadata or None)
    return str(path)


def log_retention(hidden, arrays, layer, activation):
    """The formula of the format page, in double precision: log sigmoid(down . act(up . x + up_bias) + bias)."""
    part = {name.removeprefix(f"layers.{layer}."): array.astype(np.float64) for name, array in arrays.items() if name.startswith(f"layers.{layer}.")}
    u = hidden @ part["up.weight"].T + part["up.bias"]
    z = activation(u) @ part["down.weight"].T + part["bias"]
    return -np.log1p(np.exp(-z)).T


def silu(x):
    return x / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_retention_follows_the_formula_on_the_attention_blocks_inputs(kind, run, tmp_path):
    arrays = seeded()
    file = safetensors(tmp_path / "gates.safetensors", arrays)
    code, path = run(kind, "--hidden", "--retention-gates", file)
    assert code == 0
    trace = Trace(path)
    for layer in trace.layers:
        found = trace.get(layer, "retention")
        expected = log_retention(trace.get(layer, "hidden"), arrays, layer, silu)
        assert found.shape == (KV_HEADS, trace.prompt + trace.decode)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert (found <= 0).all() and found.std() > 0.05
    assert trace.attrs["retention_gates"].startswith("gates.safetensors (sha256 ")


def test_gates_may_name_their_activation_and_come_in_half_precision_from_npz(run, tmp_path):
    arrays = seeded(dtype=np.float16)
    np.savez(tmp_path / "gates.npz", activation="relu", **arrays)
    trace = Trace(run("llama", "--hidden", "--retention-gates", str(tmp_path / "gates.npz"))[1])
    for layer in trace.layers:
        assert np.allclose(trace.get(layer, "retention"), log_retention(trace.get(layer, "hidden"), arrays, layer, relu), rtol=1e-4, atol=1e-6)


def test_neither_hidden_states_nor_other_layers_are_stored_with_the_retention(run, tmp_path):
    file = safetensors(tmp_path / "gates.safetensors", seeded(layers=[1]))
    trace = Trace(run("llama", "--layers", "1", "--retention-gates", file)[1])
    assert trace.layers == [1] and "retention" in trace.group(1)
    assert "hidden" not in trace.group(1) and "final_hidden" not in trace.file


def test_retention_of_an_answer_that_ends_early_is_cut_with_it(run, recorded, tmp_path, monkeypatch):
    full = Trace(recorded("qwen3"))
    stop = full.ids[full.prompt + 5]
    assert stop not in full.ids[full.prompt : full.prompt + 5]
    file = safetensors(tmp_path / "gates.safetensors", seeded())
    whole = Trace(run("qwen3", "--retention-gates", file, "--final-hidden", name="whole.h5")[1])
    monkeypatch.setattr("kvsim_record.trace.end_tokens", lambda *_: {stop})
    part = Trace(run("qwen3", "--respect-eos", "--retention-gates", file, "--final-hidden")[1])
    assert part.decode == 5
    for layer in part.layers:
        assert np.array_equal(part.get(layer, "retention"), whole.get(layer, "retention")[:, : part.prompt + 5])
    assert np.array_equal(part.file["final_hidden"][:], whole.file["final_hidden"][: part.prompt + 5])


@pytest.mark.parametrize("arrays,metadata,message", [
    (seeded(hidden=40), {}, "layers.0.up.weight: found the shape [5, 40], expected [5, 48] for this model"),
    (seeded(kv_heads=6), {}, "layers.0.down.weight: found the shape [6, 5], expected [2, 5] for this model"),
    (seeded(layers=[0, 1]), {}, "holds no array 'layers.2.up.weight'"),
    (seeded(), {"activation": "swish"}, "activation: found 'swish', expected silu, gelu, gelu_tanh, relu"),
    (seeded(dtype=np.float64), {}, "layers.0.up.weight: found torch.float64, expected float16, bfloat16 or float32"),
    (seeded() | {"layers.1.bias": np.array([1.0, np.nan], dtype=np.float32)}, {}, "layers.1.bias: holds numbers that are not finite"),
    ({"weights": np.zeros(3, dtype=np.float32)}, {}, "holds no retention gates: no array is named layers.<l>.up.weight"),
])
def test_gates_that_do_not_fit_are_refused_before_anything_is_recorded(arrays, metadata, message, run, tmp_path, capsys):
    code, path = run("llama", "--retention-gates", safetensors(tmp_path / "gates.safetensors", arrays, **metadata))
    assert code == 2 and not path.exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kvsim-record: error: ") and "gates.safetensors: " in error and message in error


def test_a_file_that_is_missing_or_damaged_is_refused(run, tmp_path, capsys):
    assert run("llama", "--retention-gates", str(tmp_path / "no.npz"))[0] == 2
    assert "no.npz: no such file" in capsys.readouterr().err
    (tmp_path / "text.safetensors").write_text("these are no weights")
    assert run("llama", "--retention-gates", str(tmp_path / "text.safetensors"))[0] == 2
    assert "is no safetensors or .npz file that can be read" in capsys.readouterr().err.splitlines()[-1]
