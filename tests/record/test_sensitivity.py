"""Recorded sensitivities are the derivatives of the sampled log-likelihood, in every architecture; norms of the residual stream."""

from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import torch
from record_reference import Trace, model_run
from tiny_models import TEXT
from transformers import AutoModelForCausalLM

from kvsim_record import capture
from kvsim_record.digest import file_digest
from kvsim_record.sensitivity import Sensitivity, draws, inverse_cdf

KINDS = ["llama", "llama_yarn", "multi_query", "qwen3", "gemma3", "gemma2", "glm", "neox", "smollm3", "bigcode"]
STEPS, SAMPLES, SEED = 11, 2, 3


@contextmanager
def double_throughout():
    """Norms, softmax and rotary embeddings of the library go through single precision, whatever the model's; here double stands in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@pytest.fixture(scope="module")
def gradients(model_folder):
    """Function: kind -> (prompt, decode tokens, sampled tokens [R, S], {layer: [R, Hq, S, dv]}), all in double precision."""
    made = {}

    def get(kind):
        if kind not in made:
            capture.register()
            model = AutoModelForCausalLM.from_pretrained(model_folder(kind), dtype=torch.float64, attn_implementation=capture.IMPLEMENTATION)
            with double_throughout():
                made[kind] = _gradients(model.eval().requires_grad_(False))
        return made[kind]

    return get


def _gradients(model):
    random = np.random.default_rng(5)
    prompt, tokens = list(TEXT.encode()[:60]), random.integers(0, 256, STEPS).tolist()
    keys, values, found = {}, {}, {}

    def keep(call):
        keys[call.layer], values[call.layer] = call.key, call.value
        return capture.model_attention(call)

    with torch.inference_mode(), capture.observing(keep):
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    sink = lambda layer, sample, gradient: found.setdefault(layer, {}).__setitem__(sample, gradient.numpy())  # noqa: E731
    blocks = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    sampled = Sensitivity(model, blocks, keys, values, len(prompt), tokens, sink).run(SAMPLES, SEED)
    return prompt, tokens, sampled, {layer: np.stack([found[layer][r] for r in range(SAMPLES)]) for layer in found}


class Perturbed:
    """The sampled log-likelihood under the model's own unfused attention, with something added before an output projection."""

    def __init__(self, folder, prompt, tokens, sampled):
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
        self.ids, self.prompt, self.sampled = torch.tensor([prompt + tokens]), len(prompt), sampled
        self.projections = {}
        for module in self.model.modules():
            if getattr(module, "layer_idx", None) is not None and type(module).__name__.endswith("Attention"):
                self.projections[module.layer_idx] = next(getattr(module, n) for n in ("o_proj", "dense", "c_proj") if hasattr(module, n))

    def likelihood(self, sample, layer, direction, size):
        """sum_t log p(y_t) with size * direction [Hq, S, dv] added at the decode positions of one layer."""
        added = size * torch.from_numpy(direction).transpose(0, 1).reshape(direction.shape[1], -1)

        def change(_, args):
            context = args[0].clone()
            context[0, self.prompt :] += added
            return (context, *args[1:])

        hook = self.projections[layer].register_forward_pre_hook(change)
        try:
            with torch.no_grad(), double_throughout():
                logits = self.model(input_ids=self.ids, use_cache=False).logits[0, self.prompt :]
        finally:
            hook.remove()
        return float(torch.log_softmax(logits, dim=-1).gather(1, sample[:, None]).sum())

    def derivative(self, sample, layer, direction, size=1e-5):
        return (self.likelihood(sample, layer, direction, size) - self.likelihood(sample, layer, direction, -size)) / (2 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_change_of_attention_output_changes_the_likelihood_as_recorded(kind, gradients, model_folder):
    prompt, tokens, sampled, found = gradients(kind)
    model = Perturbed(model_folder(kind), prompt, tokens, sampled)
    random = np.random.default_rng(11)
    assert sorted(found) == [0, 1, 2] and sampled.shape == (SAMPLES, STEPS)
    for layer, gradient in found.items():
        heads = gradient.shape[1]
        for sample in range(SAMPLES):
            everywhere = random.normal(size=gradient.shape[1:])
            one = np.zeros_like(everywhere)
            one[random.integers(heads), (0, STEPS - 1)[sample]] = random.normal(size=gradient.shape[3])  # one head, first or last step
            for direction in (everywhere / 10, one):
                expected = model.derivative(sampled[sample], layer, direction)
                scale = np.linalg.norm(gradient[sample]) * np.linalg.norm(direction)
                # Central differences are off by size^2 times the third derivative, and by double rounding over size: about 1e-9.
                assert np.sum(gradient[sample] * direction) == pytest.approx(expected, abs=1e-7 * scale)
        assert np.linalg.norm(gradient[0] - gradient[1]) > 1e-3 * np.linalg.norm(gradient[0])


def test_an_early_step_counts_what_it_does_to_later_ones(gradients, model_folder):
    """With the later samples left out of the sum, the derivative at step 0 is another one."""
    prompt, tokens, sampled, found = gradients("llama")
    model = Perturbed(model_folder("llama"), prompt, tokens, sampled)
    direction = np.zeros(found[0].shape[1:])
    direction[:, 0] = found[0][0][:, 0]
    whole = model.derivative(sampled[0], 0, direction)
    model.ids = model.ids[:, : model.prompt + 1]
    alone = model.derivative(sampled[0][:1], 0, direction[:, :1])
    assert whole == pytest.approx(np.sum(direction**2), rel=1e-5) and abs(alone - whole) > 0.005 * abs(whole)


def test_samples_follow_the_distribution():
    probability = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 0.0, 1.0]])
    grid = (torch.arange(1000, dtype=torch.float64)[:, None].expand(-1, 2) + 0.5) / 1000
    ids = inverse_cdf(probability.log(), grid)
    assert [(ids[:, 0] == token).sum().item() for token in range(4)] == [500, 0, 300, 200] and bool((ids[:, 1] == 3).all())


def test_draws_are_uniform_spread_over_the_samples_and_seeded():
    drawn = draws(8, 500, 1).numpy()
    assert drawn.shape == (8, 500) and 0 <= drawn.min() and drawn.max() < 1
    assert np.array_equal(np.sort((8 * drawn).astype(int), axis=0), np.tile(np.arange(8)[:, None], (1, 500)))
    # One sample by itself: mean 1/2 and no memory from step to step, within four standard errors.
    assert np.abs(drawn.mean(1) - 0.5).max() < 4 * np.sqrt(1 / 12 / 500)
    centred = drawn - 0.5
    assert np.abs((centred[:, 1:] * centred[:, :-1]).mean(1)).max() < 4 / 12 / np.sqrt(499)
    assert np.array_equal(drawn, draws(8, 500, 1).numpy()) and not np.array_equal(drawn, draws(8, 500, 2).numpy())


def test_recording_adds_sensitivities_in_the_traces_precision_and_changes_nothing_else(run, recorded):
    code, path = run("llama", "--sensitivity", "3", "--dtype", "bfloat16")
    assert code == 0
    with_them = Trace(path)
    for layer in with_them.layers:
        data = with_them.group(layer)["sensitivity"]
        assert data.shape == (3, 6, 12, 16) and data.dtype == with_them.group(layer)["key"].dtype and data.id.get_type().get_size() == 2
        assert np.isfinite(data[:]).all() and np.abs(data[:]).max() > 0
        norms = with_them.group(layer)["residual_norm"]
        assert norms.shape == (with_them.prompt + 12,) and norms.dtype == np.float32
    code, path = run("llama", "--sensitivity", "2", "--layers", "0,2")
    plain, some = Trace(recorded("llama")), Trace(path)
    assert some.layers == [0, 2] and some.attrs["sensitivity_seed"] == 0
    for layer in some.layers:
        assert all(np.array_equal(some.get(layer, name), plain.get(layer, name)) for name in ("key", "value", "query"))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run):
    paths = [run("gemma3", "--sensitivity", "2", "--seed", seed, name=f"{i}.h5") for i, seed in enumerate(["5", "5", "6"])]
    assert [code for code, _ in paths] == [0, 0, 0]
    first, again, other = (Trace(path) for _, path in paths)
    assert first.attrs["digest"] == again.attrs["digest"] != other.attrs["digest"]
    assert not np.array_equal(first.get(1, "sensitivity"), other.get(1, "sensitivity"))


def test_the_digest_covers_sensitivities_and_norms(run):
    code, path = run("llama", "--sensitivity", "2")
    assert code == 0
    trace = Trace(path)
    assert file_digest(trace.file) == trace.attrs["digest"]
    trace.file.close()
    for name in ("sensitivity", "residual_norm"):
        with h5py.File(path, "r+") as file:
            file[f"layers/001/{name}"][..., 3] = 7.0
            assert file_digest(file) != file.attrs["digest"]
            file.attrs["digest"] = file_digest(file)


@pytest.mark.parametrize("kind,option", [("llama", "--sensitivity=1"), ("gemma3", "--sensitivity=1"), ("neox", "--output-proj"), ("bigcode", "--output-proj")])
def test_residual_norms_are_those_of_the_blocks_outputs(kind, option, run, model_folder):
    code, path = run(kind, option)
    assert code == 0
    trace = Trace(path)
    _, _, outcome = model_run(model_folder(kind), trace.ids)
    for layer in (0, 1):  # the library gives the last layer's only after the final norm
        expected = outcome.hidden_states[layer + 1][0].double().norm(dim=-1).numpy()
        assert trace.get(layer, "residual_norm") == pytest.approx(expected, rel=1e-4)
    assert (trace.get(2, "residual_norm") > 0).all()


def test_an_answer_that_ends_early_has_sensitivities_of_its_own_length(model_folder, tmp_path, run):
    end = "<|end|>"
    code, path = run("llama", "--sensitivity", "2", "--respect-eos", text=TEXT + end, decode=400)
    assert code == 0
    trace = Trace(path)
    assert trace.get(0, "sensitivity").shape[2] == trace.decode and trace.get(0, "residual_norm").shape == (trace.prompt + trace.decode,)


@pytest.mark.parametrize("options,message", [
    (["--seed", "3"], "--seed: only --sample and --sensitivity draw anything"),
    (["--temperature", "2", "--sensitivity", "2"], "need --sample"),
])
def test_wrong_use_is_one_line(options, message, run, capsys):
    code, path = run("llama", *options)
    assert code == 2 and not path.exists() and message in capsys.readouterr().err.strip().splitlines()[-1]
