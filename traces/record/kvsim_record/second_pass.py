"""A second pass over the prompt on top of its full cache: what a model looks at while it repeats what it has read.

Two passes, as in kvpress. KVzip (arXiv 2505.23416): for each piece of 2048 prompt tokens, an instruction to repeat it and the
piece itself; a key's statistic is the largest softmax weight that any of these queries gives it, the softmax being over the
first four keys, the piece and the new tokens alone. `kvzip_plus` weighs with |v Wo| / |x| first: what the key writes, relative
to the attention block's input of the query. KVCompose (arXiv 2509.05165): the prompt is fed once more; maximum and mean of the
ordinary attention that these queries give each key of the first reading. The cache itself stays as it was.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .capture import Call, attend, masked_logits, observing
from .digest import digest_of
from .errors import RecordError
from .plan import Plan
from .writer import TraceWriter

METHOD = "repeat"
PIECE = 2048  # prompt tokens per repetition
SINKS = 4  # first keys that take part in every reduced softmax
_CARRIED = 8  # tokens of the piece before that tell where to go on
_FIRST = "\n\nRepeat the previous context exactly."
_NEXT = "\n\nRepeat the part of the previous context exactly, starting with"
_COLUMNS = 4096  # tokens whose values are projected at a time


@dataclass
class Piece:
    """Prompt tokens [begin, end) and what is fed to have them repeated."""

    begin: int
    end: int
    tokens: list[int]


def pieces(tokenizer, ids: list[int], prefix: int, templated: bool) -> list[Piece]:
    """`prefix` tokens of a chat template come before the text and are not repeated."""
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    suffix = encode(_suffix(tokenizer) if templated else "\n")
    found = []
    for begin in range(prefix, len(ids), PIECE):
        end = min(begin + PIECE, len(ids))
        ask = encode(_FIRST) if begin == prefix else encode(_NEXT) + ids[max(prefix, begin - _CARRIED) : begin]
        found.append(Piece(begin, end, [*ask, *suffix, *ids[begin:end]]))
    return found


def _suffix(tokenizer) -> str:
    """What the chat template puts between the end of the user's text and the answer."""
    mark = "\n#####"
    text = tokenizer.apply_chat_template([{"role": "user", "content": f"text{mark}"}], tokenize=False, add_generation_prompt=True)
    return text.partition(mark)[2]


def origin(model: str, ids: list[int]) -> dict:
    """Attributes that tie a pass to its model and prompt; a reader refuses another's."""
    return {"model": model, "prompt": digest_of("/tokens/id", np.array(ids, dtype="<i4").tobytes())}


class SecondPass:
    """Runs both passes and holds their statistics [Hq, T] per recorded layer, float32 (the mean is summed in double)."""

    def __init__(self, model, recorder, progress):
        self._model, self._recorder, self._progress = model, recorder, progress
        plan: Plan = recorder.plan
        self._prompt = plan.prompt
        self.layers = {layer.index: layer for layer in plan.layers}
        self.pieces: list[Piece] = []
        tables = lambda dtype: {l.index: torch.zeros(l.query_heads, plan.prompt, dtype=dtype, device=l.device) for l in plan.layers}  # noqa: E731
        self._kvzip, self._largest, self._sum = tables(torch.float32), tables(torch.float32), tables(torch.float64)
        self._kvzip_plus = tables(torch.float32) if all(l.output_proj is not None for l in plan.layers) else {}
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values that this pass has added
        self._per_input: dict[int, torch.Tensor] = {}
        self._piece: Piece | None = None

    def run(self, found: list[Piece], ids: list[int]) -> None:
        self.pieces = found
        blocks = range(0, len(ids), PIECE)
        self._progress.phase("second pass", (len(found) + len(blocks)) * self._recorder.plan.num_layers, "layer")
        for piece in found:
            self._piece, self._own = piece, {}
            self._feed(piece.tokens, self._prompt)
        self._piece, self._own = None, {}
        for begin in blocks:
            self._feed(ids[begin : begin + PIECE], self._prompt + begin)
        self._own = {}

    def _feed(self, tokens: list[int], start: int) -> None:
        ids = torch.tensor([tokens], device=self._model.device)
        position = torch.arange(start, start + len(tokens), device=self._model.device)[None]
        hooks = [layer.module.register_forward_pre_hook(self._see_input(layer.index), with_kwargs=True) for layer in self.layers.values()]
        try:
            with torch.inference_mode(), observing(self):
                self._model.get_decoder()(input_ids=ids, position_ids=position, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _see_input(self, layer: int):
        def before(_, args, kwargs):
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            norm = hidden[0].float().norm(dim=-1)
            self._per_input[layer] = torch.where(norm > 0, 1 / norm, 0)  # an empty input (a padding token) asks for nothing
        return before

    def __call__(self, call: Call) -> torch.Tensor:
        """Attention over the prompt's cache and what this pass has fed, itself included."""
        recorder = self._recorder
        own = (call.key[0], call.value[0])
        if call.layer in self._own:
            own = tuple(torch.cat([before, new], dim=1) for before, new in zip(self._own[call.layer], own))
        self._own[call.layer] = own
        key = torch.cat([recorder.keys[call.layer][0], own[0]], dim=1)
        value = torch.cat([recorder.values[call.layer][0], own[1]], dim=1).float()
        scale, softcap, window = recorder.facts[call.layer]
        query, start = call.query[0], key.shape[1] - call.rows
        weight = self._weight(call.layer) if self._piece and call.layer in self._kvzip_plus else None
        outputs = []
        for begin, logits in masked_logits(query, key, start, scale, softcap, window):
            if call.layer in self.layers and self._piece:
                self._add_repetition(call, begin, logits, weight)
            attention = torch.softmax(logits, dim=-1)
            if call.layer in self.layers and not self._piece:
                self._add_reading(call.layer, attention[:, :, : self._prompt])
            outputs.append(attend(attention, value))
        self._progress.step()
        return torch.cat(outputs, dim=1).to(call.query.dtype).transpose(0, 1)[None]

    def _add_repetition(self, call: Call, begin: int, logits: torch.Tensor, weight: torch.Tensor | None) -> None:
        piece = self._piece
        sinks = min(SINKS, piece.begin)
        parts = [logits[..., :sinks], logits[..., piece.begin : piece.end], logits[..., self._prompt :]]
        reduced = torch.softmax(torch.cat(parts, dim=-1), dim=-1)[..., sinks : sinks + piece.end - piece.begin]
        _raise(self._kvzip[call.layer][:, piece.begin : piece.end], reduced)
        if weight is not None:
            per_input = self._per_input[call.layer][begin : begin + logits.shape[1]]
            _raise(self._kvzip_plus[call.layer][:, piece.begin : piece.end], reduced * per_input[:, None] * weight[:, None, :])

    def _add_reading(self, layer: int, attention: torch.Tensor) -> None:
        _raise(self._largest[layer], attention)
        self._sum[layer] += attention.sum(dim=1, dtype=torch.float64)

    def _weight(self, layer: int) -> torch.Tensor:
        """|v Wo| of the piece's values for every query head, [Hq, piece]."""
        facts, piece = self.layers[layer], self._piece
        value = self._recorder.values[layer][0, :, piece.begin : piece.end].float()
        projection = facts.output_proj.float().reshape(facts.query_heads, facts.value_dim, -1)
        group = facts.query_heads // facts.kv_heads
        norms = [torch.cat([(part @ projection[head]).norm(dim=-1) for part in value[head // group].split(_COLUMNS)])
                 for head in range(facts.query_heads)]
        return torch.stack(norms)

    def write(self, writer: TraceWriter, tied: dict, prefix: int) -> None:
        tokens = [token for piece in self.pieces for token in piece.tokens]
        writer.put("/second_pass/token", np.array(tokens, dtype=np.int32), "int32")
        writer.attributes("/second_pass", {"method": METHOD, "pieces": len(self.pieces), "piece": PIECE, "sinks": SINKS,
                                           "prefix": prefix} | tied)
        for index in self.layers:
            values = {"kvzip": self._kvzip[index], "kvcompose_max": self._largest[index], "kvcompose_mean": self._sum[index] / self._prompt}
            if self._kvzip_plus:
                values["kvzip_plus"] = self._kvzip_plus[index]
            for name, table in values.items():
                writer.put(f"/layers/{index:03d}/second_pass/{name}", table.float().cpu().numpy(), "float32")


def _raise(table: torch.Tensor, rows: torch.Tensor) -> None:
    """Takes the maximum over rows [Hq, n, columns] into table [Hq, columns]."""
    torch.maximum(table, rows.amax(dim=1), out=table)


def check_length(config, prompt: int, found: list[Piece]) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    last = prompt + max(prompt, *(len(piece.tokens) for piece in found))
    if limit and last > limit:
        raise RecordError(f"--second-pass: reads the prompt again, up to position {last}; the model was made for {limit}: shorten the text")
