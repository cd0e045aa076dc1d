"""Runs the model over prompt and answer while its attention calls stream into the trace."""

import inspect
from contextlib import contextmanager

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .capture import Call, check_mask, model_attention, observing, probabilities, refuse_foreign
from .decode import Chooser
from .dtypes import raw
from .errors import RecordError
from .plan import Plan
from .probe import rope_tables
from .progress import Progress
from .selfcheck import Sample, spread
from .stats import PromptStats
from .writer import TraceWriter

_CHUNK = 4096  # prompt tokens per forward pass
_GIVEN_CHUNK = 256  # tokens of a given answer per forward pass
_SAMPLED_ROWS = 4  # prompt positions and decode steps that the self-check looks at


def whole_cache(model) -> DynamicCache:
    """A cache that keeps every token, also in layers whose window slides (the mask alone does the sliding)."""
    cache = DynamicCache(config=model.config)
    cache.layers = [DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer for layer in cache.layers]
    return cache


def last_logits(model, tokens: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Feeds tokens [1, n]; the logits [vocabulary] after the last, without computing the others where the model can."""
    only_last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    return model(input_ids=tokens, past_key_values=cache, use_cache=True, **only_last).logits[0, -1]


class Recorder:
    """Observes one run. `keys` and `values` are, per layer, the cache's own tensors as attention last read them."""

    def __init__(self, model, plan: Plan, writer: TraceWriter, progress: Progress):
        self.model, self.plan, self.writer, self.progress = model, plan, writer, progress
        self.recorded = {layer.index: layer for layer in plan.layers}
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.facts: dict[int, tuple[float, float, int]] = {}  # scale, soft cap, window of every layer
        self.samples: list[Sample] = []
        self.tail: dict[int, torch.Tensor] = {}  # last prompt queries of every layer, for lookahead passes
        self.tail_rows = 0
        self.tokens: list[int] = []
        self.ended = False
        self.stats = {}
        if plan.options.stats:
            self.stats = {l.index: PromptStats(l, plan.prompt, model.device) for l in plan.layers}
        rows = range(plan.first_query, plan.prompt)
        self._sampled = {rows[i] for i in spread(len(rows), _SAMPLED_ROWS)}
        self._sampled |= {plan.prompt + t for t in (0, 1, 3, 7)} | {plan.prompt + t for t in spread(plan.decode, _SAMPLED_ROWS)}
        self._cache = whole_cache(model)
        self._rope = rope_tables(model)
        for path, (shape, kind) in plan.streamed().items():
            writer.create(path, shape, kind)

    # --- what the model runs ---------------------------------------------------------------------------------

    def prefill(self, ids: list[int]) -> torch.Tensor:
        """Feeds the prompt; returns the logits [vocabulary] after its last token."""
        chunks = range(0, len(ids), _CHUNK)
        self.progress.phase("prompt", len(chunks) * self.plan.num_layers, "layer")
        for begin in chunks:
            logits = self._feed(ids[begin : begin + _CHUNK])
        self.check_rope()
        return logits

    def decode(self, logits: torch.Tensor, chooser: Chooser, ends: set[int]) -> None:
        """Feeds up to plan.decode tokens, each chosen from the logits before it; a token of `ends` stops before it is fed."""
        self.progress.phase("decode", self.plan.decode, "token")
        for _ in range(self.plan.decode):
            token = chooser.next(logits)
            if token in ends:
                self.ended = True
                break
            self.tokens.append(token)
            logits = self._feed([token])
            self.progress.step()
        self.check_rope()

    def follow(self, answer: list[int]) -> None:
        """Feeds a given answer (teacher forcing)."""
        self.progress.phase("decode", len(answer), "token")
        for begin in range(0, len(answer), _GIVEN_CHUNK):
            block = answer[begin : begin + _GIVEN_CHUNK]
            self._feed(block)
            self.progress.step(len(block))
        self.tokens = list(answer)
        self.check_rope()

    def _feed(self, ids: list[int]) -> torch.Tensor:
        tokens = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode(), observing(self), self._hidden():
            return last_logits(self.model, tokens, self._cache)

    def check_rope(self) -> None:
        before = {(table.tobytes(), scaling) for table, scaling in self._rope}
        if {(table.tobytes(), scaling) for table, scaling in rope_tables(self.model)} != before:
            raise RecordError("the model changes its rotary frequencies with the length of the text, and this text crosses "
                              "that length; use a shorter prompt")

    # --- what is seen ----------------------------------------------------------------------------------------

    def __call__(self, call: Call) -> torch.Tensor:
        refuse_foreign(call)
        check_mask(call)
        output = model_attention(call)
        self.keys[call.layer], self.values[call.layer] = call.key, call.value
        self.facts[call.layer] = (call.scale, call.softcap, call.window)
        in_prompt = call.start < self.plan.prompt
        if in_prompt and self.tail_rows:
            rows = torch.cat([self.tail[call.layer], call.query[0]], dim=1) if call.layer in self.tail else call.query[0]
            self.tail[call.layer] = rows[:, -self.tail_rows :].clone()
        if call.layer in self.recorded:
            self._write_queries(call)
            self._sample(call, output)
            if in_prompt and self.stats:
                self.stats[call.layer].add(call)
        if in_prompt:
            self.progress.step()
        return output

    def _write_queries(self, call: Call) -> None:
        skip = max(0, self.plan.first_query - call.start)
        if skip >= call.rows:
            return
        at, row = self.plan.group(call.layer), call.start + skip - self.plan.first_query
        query = call.query[0, :, skip:]
        self.writer.write(f"{at}/query", raw(query), (0, row, 0))
        if self.plan.options.attention:
            total = self.plan.prompt + self.plan.decode
            blocks = probabilities(query, call.key[0], call.start + skip, call.scale, call.softcap, call.window)
            for begin, attention in blocks:
                whole = torch.nn.functional.pad(attention, (0, total - call.seen))
                self.writer.write(f"{at}/attention", raw(whole), (0, row + begin, 0))

    def _sample(self, call: Call, output: torch.Tensor) -> None:
        for position in range(call.start, call.start + call.rows):
            if position in self._sampled:
                own = output[0, position - call.start].float().cpu().numpy()
                self.samples.append(Sample(call.layer, position, own))

    @contextmanager
    def _hidden(self):
        """While active, what the attention blocks' inputs give and the last layer's output are written."""
        options, gates, start = self.plan.options, self.plan.gates, self._cache.get_seq_length()

        def before(layer):
            def write(_, args, kwargs):
                hidden = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])[0]
                at = self.plan.group(layer)
                if options.hidden:
                    self.writer.write(f"{at}/hidden", raw(hidden), (start, 0))
                if layer in gates:
                    self.writer.write(f"{at}/retention", raw(gates[layer].log_retention(hidden)), (0, start))
            return write

        def after(layer):
            def write(_, args, output):
                stream = (output[0] if isinstance(output, tuple) else output)[0]
                self.writer.write(f"{self.plan.group(layer)}/residual_norm", raw(stream.float().norm(dim=-1)), (start,))
            return write

        hooks = []
        hooks += [layer.block.register_forward_hook(after(layer.index)) for layer in self.plan.layers if self.plan.has_norm(layer)]
        if options.hidden or gates:
            hooks += [layer.module.register_forward_pre_hook(before(layer.index), with_kwargs=True) for layer in self.plan.layers]
        if options.final_hidden:
            hooks.append(self.model.get_decoder().register_forward_hook(
                lambda _, args, output: self.writer.write("/final_hidden", raw(output[0][0]), (start, 0))))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
