"""How the model's own next-token distribution answers to a change of each layer's attention output: sampled gradients.

For sample r a token y_t is drawn from the full model's distribution after every decode step t, and the gradient of
sum_t log p(y_t) with respect to each attention output (layer, query head, step; before the output projection) is kept. The decode
tokens are fed once more in one pass, their own keys and values in the graph, the prompt's held fixed: so a gradient at step t
counts what the change does at t and, through later layers' keys and values, at every later step. The graph is whole: it is not cut
between steps. Memory stays small because each block is computed again in the backward pass (checkpointing), the head is
differentiated in slices of rows, and every layer's gradients go to the file at once.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from .capture import Call, model_attention, observing, visible_keys
from .dtypes import raw
from .errors import RecordError

_HEAD_BYTES = 128 << 20  # of double-precision probabilities held at once
_STREAM = 0x53454E53  # sets these draws apart from other uses of the same seed


@dataclass
class Head:
    """What the samples are, [R, S] ids, and their gradients with respect to the last hidden state, [R, S, hidden]."""

    tokens: torch.Tensor
    gradient: torch.Tensor


class Sensitivity:
    """Feeds `tokens` on top of a prompt's cache (keys and values [1, Hkv, >= prompt, d] by layer) and hands every gradient on:
    `sink(layer, sample, gradient [Hq, S, dv])`, layers from last to first for each sample. Computes in the model's own precision."""

    def __init__(self, model, blocks, keys: dict, values: dict, prompt: int, tokens: list[int], sink):
        self._model, self._blocks, self._sink = model, blocks, sink
        self._keys, self._values, self._prompt, self._tokens = keys, values, prompt, tokens
        self._sample = 0
        self._masks: dict[int, torch.Tensor] = {}

    def run(self, samples: int, seed: int) -> torch.Tensor:
        """Takes all samples; returns their tokens [R, S]."""
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            leaves = stack.enter_context(self._differentiable_input())
            stack.enter_context(recomputed(self._blocks))
            stack.enter_context(observing(self))
            ids = torch.tensor([self._tokens], device=self._model.device)
            position = torch.arange(self._prompt, self._prompt + len(self._tokens), device=self._model.device)[None]
            output = self._model.get_decoder()(input_ids=ids, position_ids=position, use_cache=False)
            head = self._head(output, draws(samples, len(self._tokens), seed))
            for self._sample in range(samples):
                torch.autograd.grad(output[0], leaves[0], head.gradient[None, self._sample], retain_graph=self._sample + 1 < samples)
        return head.tokens

    @contextmanager
    def _differentiable_input(self):
        """Makes the embedded tokens the leaf of the graph; yields a list that then holds it."""
        leaves = []

        def after(_, args, output):
            leaves.append(output.detach().requires_grad_())
            return leaves[0].clone()  # a leaf may not be changed in place, as some models do

        hook = self._model.get_input_embeddings().register_forward_hook(after)
        try:
            yield leaves
        finally:
            hook.remove()

    def __call__(self, call: Call) -> torch.Tensor:
        """Attention over the prompt's cache and the decode tokens; its gradient is handed on whenever it is computed."""
        prompt = slice(0, self._prompt)
        key = torch.cat([self._keys[call.layer][:, :, prompt], call.key], dim=2)
        value = torch.cat([self._values[call.layer][:, :, prompt], call.value], dim=2)
        output = model_attention(replace(call, key=key, value=value, mask=self._mask(call)))
        if output.requires_grad:
            layer = call.layer  # the hook lives as long as the graph, and must not hold the call's tensors
            output.register_hook(lambda gradient: self._sink(layer, self._sample, gradient[0].transpose(0, 1)))
        return output

    def _mask(self, call: Call) -> torch.Tensor:
        if call.window not in self._masks:
            seen = self._prompt + call.rows
            self._masks[call.window] = visible_keys(self._prompt, call.rows, seen, call.window, call.query.device)[None, None]
        return self._masks[call.window]

    def _head(self, output, uniform: torch.Tensor) -> Head:
        hidden = output[0].detach()
        samples, steps = uniform.shape
        head = Head(torch.zeros(samples, steps, dtype=torch.int64), hidden.new_zeros(samples, steps, hidden.shape[2]))
        rows = max(1, _HEAD_BYTES // (8 * self._model.get_input_embeddings().num_embeddings))
        for begin in range(0, steps, rows):
            part = slice(begin, begin + rows)
            leaf = hidden[:, part].clone().requires_grad_()
            likelihood = torch.log_softmax(exact(head_logits(self._model, output, leaf)[0]), dim=-1)
            chosen = inverse_cdf(likelihood.detach(), uniform[:, part])
            head.tokens[:, part] = chosen.cpu()
            for sample in range(samples):
                total = likelihood.gather(1, chosen[sample][:, None]).sum()
                head.gradient[sample, part] = torch.autograd.grad(total, leaf, retain_graph=sample + 1 < samples)[0][0]
        return head


def exact(logits: torch.Tensor) -> torch.Tensor:
    """Logits in single precision at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def head_logits(model, output, hidden: torch.Tensor) -> torch.Tensor:
    """What the model's head makes of hidden states [1, n, hidden] in place of those in `output`, its decoder's: [1, n, vocabulary].
    The model's own code runs, so that what it does to its logits (caps, scales) is done."""
    decoder = model.get_decoder()
    changed = type(output)(**(dict(output) | {"last_hidden_state": hidden}))
    with replaced_forward(decoder, lambda *args, **kwargs: changed):
        return model(input_ids=torch.zeros(1, hidden.shape[1], dtype=torch.int64, device=hidden.device), use_cache=False).logits


@contextmanager
def recomputed(blocks):
    """While active, the blocks keep their inputs alone for the backward pass, which runs them again."""
    with ExitStack() as stack:
        for block in blocks:
            def forward(*args, own=block.forward, **kwargs):
                return checkpoint(own, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
            stack.enter_context(replaced_forward(block, forward))
        yield


@contextmanager
def replaced_forward(module, forward):
    had = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if had is None:
            del module.forward
        else:
            module.forward = had


def draws(samples: int, steps: int, seed: int) -> torch.Tensor:
    """Uniform numbers [R, S] in [0, 1). Each step's R numbers fall into the R equal parts of the interval, one into each, in an
    order of its own: every sample by itself is S independent draws, and together they cover rare tokens evenly."""
    random = np.random.Generator(np.random.PCG64([seed % 2**64, _STREAM]))
    part = random.permuted(np.tile(np.arange(samples), (steps, 1)), axis=1).T
    return torch.from_numpy((part + random.random((samples, steps))) / samples)


def inverse_cdf(likelihood: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Ids [R, n] that uniform numbers [R, n] choose from log-probabilities [n, vocabulary], summed in double precision."""
    cumulative = likelihood.double().exp().cumsum(dim=-1)
    wanted = (uniform.to(cumulative.device).T * cumulative[:, -1:]).contiguous()
    return torch.searchsorted(cumulative, wanted, right=True).clamp_max(cumulative.shape[1] - 1).T


def record_sensitivity(recorder, samples: int, seed: int) -> None:
    """Streams `/layers/<l>/sensitivity` [R, Hq, S, dv] of the recorded layers from the run that `recorder` has seen."""
    plan, writer, progress = recorder.plan, recorder.writer, recorder.progress
    for path, (shape, kind) in plan.sensitivities().items():
        writer.create(path, shape, kind)
    progress.phase("sensitivity", samples * len(plan.layers), "layer")

    def sink(layer: int, sample: int, gradient: torch.Tensor) -> None:
        if layer not in recorder.recorded:
            return
        if not bool(gradient.isfinite().all()):
            raise RecordError(f"--sensitivity: gradients of layer {layer} overflow {plan.dtype}; record with --dtype bfloat16 or float32")
        writer.write(f"{plan.group(layer)}/sensitivity", raw(gradient)[None], (sample, 0, 0, 0))
        progress.step()

    Sensitivity(recorder.model, plan.blocks, recorder.keys, recorder.values, plan.prompt, recorder.tokens, sink).run(samples, seed)
    recorder.check_rope()
