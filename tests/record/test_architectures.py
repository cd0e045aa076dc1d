"""Every architecture: what is stored reproduces the model's own attention, scale, window, soft cap and RoPE included."""

import numpy as np
import pytest
from record_reference import Trace, model_run, rotate

KINDS = ["llama", "llama_yarn", "multi_query", "qwen3", "gemma3", "gemma2", "glm", "neox", "smollm3", "bigcode"]
ROTATING = [kind for kind in KINDS if kind != "bigcode"]
SHAPES = {"multi_query": (6, 1), "bigcode": (6, 1), "neox": (6, 6)}


@pytest.mark.parametrize("kind", KINDS)
def test_stored_tensors_reproduce_the_models_attention_output(kind, recorded, model_folder):
    trace = Trace(recorded(kind))
    outputs, _, _ = model_run(model_folder(kind), trace.ids)
    assert trace.layers == [0, 1, 2]
    assert (trace.attrs["num_query_heads"], trace.attrs["num_kv_heads"]) == SHAPES.get(kind, (6, 2))
    for layer in trace.layers:
        found = trace.output(layer)
        assert trace.group(layer)["query_position"][:].tolist() == list(range(trace.prompt + trace.decode))
        expected = outputs[layer].reshape(found.shape[1], found.shape[0], -1).transpose(1, 0, 2)
        # float32 throughout: the rest is rounding (queries of the answer were computed one by one).
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_attention_of_the_tiny_models_is_peaky(kind, recorded):
    """Guards the test above: with uniform attention, wrong scales and rotations would pass it."""
    trace = Trace(recorded(kind))
    strongest = np.concatenate([trace.attention(layer)[:, 40:].max(-1).ravel() for layer in trace.layers])
    assert np.median(strongest) > (0.1 if kind in ("gemma2", "bigcode") else 0.2)


@pytest.mark.parametrize("kind", ROTATING)
def test_rotating_the_models_plain_queries_gives_the_stored_ones(kind, recorded, model_folder):
    trace = Trace(recorded(kind))
    _, before, _ = model_run(model_folder(kind), trace.ids)
    rotating = [layer for layer in trace.layers if not (kind == "smollm3" and layer == 1)]
    assert len(before) == len(rotating)
    position = np.arange(len(trace.ids))
    for layer, plain in zip(rotating, before):
        expected = rotate(plain, position, trace.inv_freq(layer), trace.attrs["rope_layout"], trace.fact(layer, "attention_scaling"))
        assert np.abs(trace.get(layer, "query") - expected).max() < 1e-4 * np.abs(expected).max()


def test_grouped_llama_attributes(recorded):
    trace = Trace(recorded("llama"))
    assert trace.attrs["rope_layout"] == "half" and trace.attrs["softmax_scale"] == 0.25 and trace.attrs["logit_softcap"] == 0
    assert (trace.attrs["head_dim"], trace.attrs["value_dim"], trace.attrs["num_layers"]) == (16, 16, 3)
    assert all("softmax_scale" not in trace.group(layer).attrs for layer in trace.layers)


def test_yarn_stores_its_scaling_of_the_rotation(recorded):
    trace = Trace(recorded("llama_yarn"))
    assert trace.attrs["attention_scaling"] == pytest.approx(0.1 * np.log(4.0) + 1.0)  # YaRN's mscale for factor 4


def test_gemma3_stores_windows_own_scale_and_two_rope_bases(recorded):
    trace = Trace(recorded("gemma3"))
    assert [int(trace.group(layer).attrs["sliding_window"]) for layer in trace.layers] == [7, 0, 7]
    assert trace.attrs["softmax_scale"] == pytest.approx(40**-0.5)
    assert np.array_equal(trace.inv_freq(0), trace.inv_freq(2))
    base = [trace.inv_freq(layer)[-1] ** (-8 / 7) for layer in (0, 1)]  # the last of 8 frequencies is base^(-7/8)
    assert base == pytest.approx([1e4, 1e6], rel=1e-3)


def test_gemma2_stores_its_soft_cap(recorded):
    assert Trace(recorded("gemma2")).attrs["logit_softcap"] == 5.0


def test_glm_is_interleaved_over_half_of_the_channels(recorded):
    trace = Trace(recorded("glm"))
    assert trace.attrs["rope_layout"] == "interleaved" and len(trace.inv_freq(0)) == 4


def test_a_layer_without_rotation_has_frequencies_of_zero(recorded):
    trace = Trace(recorded("smollm3"))
    assert not trace.inv_freq(1).any() and trace.inv_freq(0).all() and trace.inv_freq(2).all()


def test_learned_positions_store_no_rotation(recorded):
    trace = Trace(recorded("bigcode"))
    assert trace.attrs["rope_layout"] == "none" and trace.inv_freq(0) is None
