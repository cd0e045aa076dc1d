"""The real model with an evicted cache: the prompt's full cache, and for each cell a mask of what its query heads may still read."""

from dataclasses import dataclass, replace

import h5py
import numpy as np
import torch

from ..capture import Call, model_attention, observing, refuse_foreign, visible_keys
from ..errors import RecordError
from ..models import Loaded
from ..recorder import last_logits, whole_cache
from ..selfcheck import spread
from ..sensitivity import head_logits
from .kept import word

_CHUNK = 4096  # prompt tokens per forward pass
_MASK_BYTES = 256 << 20  # of masks held at once
_HEAD_BYTES = 128 << 20  # of double-precision log-probabilities of one cell held at once
_COMPARED = 64  # prompt positions whose keys are compared with the trace's
# Largest relative difference of a layer's keys for the model to pass as the trace's. What two precisions of one model do to each other is below it
# (SmolLM2 in float32 against its bfloat16 recording: 0.009); another model's keys differ by about 1.
_SAME_KEYS = 0.1


@dataclass
class Recorded:
    """What the closed loop needs of one trace."""

    name: str
    digest: str
    model: str
    ids: list[int]
    prompt: int
    layers: list[int]
    heads: tuple[int, int]  # query heads, KV heads

    @property
    def steps(self) -> int:
        return len(self.ids) - self.prompt


def read_trace(name: str, file: h5py.File) -> Recorded:
    if "tokens/id" not in file:
        raise RecordError(f"{file.filename}: has no /tokens/id, and without the tokens the model cannot run; record with kvsim-record")
    attrs = file.attrs
    layers = sorted(int(layer) for layer in file["layers"])
    return Recorded(name, word(file, "digest"), word(file, "model"), file["tokens/id"][:].tolist(), int(attrs["prompt_len"]),
                    layers, (int(attrs["num_query_heads"]), int(attrs["num_kv_heads"])))


class Full:
    """The prompt's full cache of one trace. `logits`: after the prompt's last token."""

    def __init__(self, loaded: Loaded, recorded: Recorded):
        self.model, self.recorded = loaded.model, recorded
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        cache, ids = whole_cache(self.model), recorded.ids[: recorded.prompt]
        with torch.inference_mode(), observing(self):
            for begin in range(0, len(ids), _CHUNK):
                self.logits = last_logits(self.model, torch.tensor([ids[begin : begin + _CHUNK]], device=self.model.device), cache)
        if len(self.keys) < self.model.config.get_text_config(decoder=True).num_hidden_layers:
            raise RecordError(f"{recorded.model}: some layers keep another state than attention's cache, which masks cannot evict")

    def __call__(self, call: Call) -> torch.Tensor:
        refuse_foreign(call)
        self.keys[call.layer], self.values[call.layer] = call.key, call.value
        return model_attention(call)

    def check(self, file: h5py.File) -> float:
        """Compares keys with the trace's; returns the largest relative difference over its layers."""
        positions, worst = sorted(spread(self.recorded.prompt, _COMPARED)), 0.0
        for layer in self.recorded.layers:
            stored = file[f"layers/{layer:03d}/key"]
            own = self.keys.get(layer)
            if own is None or (own.shape[1], own.shape[3]) != (stored.shape[0], stored.shape[2]):
                raise RecordError(f"{file.filename}: layer {layer} has keys of another shape than the model's; the recording is a part of a "
                                  "model (cut to some heads), or of another one: name the right one with --model")
            wanted = np.stack([stored[:, p] for p in positions], axis=1).astype(np.float64)
            error = np.linalg.norm(own[0][:, positions].double().cpu().numpy() - wanted) / np.linalg.norm(wanted)
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf)))
        if worst > _SAME_KEYS:
            raise RecordError(f"{file.filename}: the model's keys differ from the recorded ones by {worst:.2g} (tolerated {_SAME_KEYS}); this is not "
                              f"the model of the recording ({self.recorded.model}): name that with --model")
        return worst


class Evicted:
    """Runs tokens on top of a full cache for several cells at once. `last`: per masked layer, the last step at which a query
    head of a cell can read a position, int32 [cells, Hq, T + steps]; None = nothing is evicted."""

    def __init__(self, full: Full, last: dict[int, torch.Tensor] | None, cells: int = 1):
        self._full, self._last, self._cells = full, last or {}, cells
        self._own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._fed = 0

    def feed(self, tokens: list[list[int]]):
        """Feeds [cells][n] tokens after those fed before; the decoder's output. Steps count from the first token fed."""
        model, prompt = self._full.model, self._full.recorded.prompt
        ids = torch.tensor(tokens, device=model.device)
        position = torch.arange(prompt + self._fed, prompt + self._fed + ids.shape[1], device=model.device)[None].expand(self._cells, -1)
        with torch.inference_mode(), observing(self):
            output = model.get_decoder()(input_ids=ids, position_ids=position, use_cache=False)
        self._fed += ids.shape[1]
        return output

    def __call__(self, call: Call) -> torch.Tensor:
        own = (call.key, call.value)
        if call.layer in self._own:
            own = tuple(torch.cat([before, new], dim=2) for before, new in zip(self._own[call.layer], own))
        self._own[call.layer] = own
        cells, full = self._cells, self._full
        key = torch.cat([full.keys[call.layer].expand(cells, -1, -1, -1), own[0]], dim=2)
        value = torch.cat([full.values[call.layer].expand(cells, -1, -1, -1), own[1]], dim=2)
        rows = max(1, _MASK_BYTES // (5 * cells * call.query.shape[1] * key.shape[2]))
        parts = []
        for begin in range(0, call.rows, rows):
            query = call.query[:, :, begin : begin + rows]
            mask = self._mask(call, self._fed + begin, query.shape[2])
            parts.append(model_attention(replace(call, query=query, key=key[:, :, : mask.shape[3]], value=value[:, :, : mask.shape[3]], mask=mask)))
        return torch.cat(parts, dim=1)

    def _mask(self, call: Call, step: int, rows: int) -> torch.Tensor:
        """What may be read at steps step .. step+rows-1: bool [cells or 1, Hq or 1, rows, seen]."""
        prompt = self._full.recorded.prompt
        seen = prompt + step + rows
        visible = visible_keys(prompt + step, rows, seen, call.window, call.query.device)[None, None]
        if call.layer not in self._last:
            return visible
        last = self._last[call.layer]
        steps = torch.arange(step, step + rows, device=last.device, dtype=last.dtype)
        readable = last[:, :, None, : min(seen, last.shape[2])] >= steps[None, None, :, None]
        if readable.shape[3] < seen:  # tokens generated beyond what was recorded are never evicted
            readable = torch.nn.functional.pad(readable, (0, seen - readable.shape[3]), value=True)
        return visible & readable


@dataclass
class Steps:
    """Per decode step t, the distribution after feeding decode token t, float64 [S]; `likelihood` of the recorded next token, NaN at the end."""

    kl: np.ndarray
    agree: np.ndarray
    likelihood: np.ndarray


class Judge:
    """Compares cells of one trace with its full cache."""

    def __init__(self, full: Full):
        self._full = full
        recorded = full.recorded
        self._answer = recorded.ids[recorded.prompt :]
        self._output = Evicted(full, None).feed([self._answer])
        self.entropy, self.likelihood = self._of_full()

    def cells_at_once(self) -> int:
        """How many cells fit into the memory for masks; more than eight gain nothing."""
        recorded = self._full.recorded
        return max(1, min(8, _MASK_BYTES // (5 * recorded.heads[0] * recorded.steps * len(recorded.ids))))

    def run(self, last: dict[int, torch.Tensor], cells: int) -> list[Steps]:
        output = Evicted(self._full, last, cells).feed([self._answer] * cells)
        steps = len(self._answer)
        found = [Steps(np.empty(steps), np.empty(steps, dtype=np.uint8), np.empty(steps)) for _ in range(cells)]
        with torch.inference_mode():
            for part in self._parts():
                full = self._log_probabilities(self._output, 0, part)
                for cell in range(cells):
                    own = self._log_probabilities(output, cell, part)
                    found[cell].kl[part] = _expected(full, full - own).cpu().numpy()
                    found[cell].agree[part] = (full.argmax(-1) == own.argmax(-1)).cpu().numpy()
                    found[cell].likelihood[part] = self._next(own, part)
        return found

    def _of_full(self) -> tuple[np.ndarray, np.ndarray]:
        entropy, likelihood = np.empty(len(self._answer)), np.empty(len(self._answer))
        with torch.inference_mode():
            for part in self._parts():
                full = self._log_probabilities(self._output, 0, part)
                entropy[part] = _expected(full, -full).cpu().numpy()
                likelihood[part] = self._next(full, part)
        return entropy, likelihood

    def _parts(self) -> list[slice]:
        rows = max(1, _HEAD_BYTES // (8 * self._full.model.get_input_embeddings().num_embeddings))
        return [slice(begin, min(begin + rows, len(self._answer))) for begin in range(0, len(self._answer), rows)]

    def _log_probabilities(self, output, cell: int, part: slice) -> torch.Tensor:
        return torch.log_softmax(head_logits(self._full.model, output, output[0][cell : cell + 1, part])[0].double(), dim=-1)

    def _next(self, log_probability: torch.Tensor, part: slice) -> np.ndarray:
        """Of the recorded tokens that follow steps `part`."""
        following = self._answer[part.start + 1 : part.stop + 1]
        index = torch.tensor(following, device=log_probability.device, dtype=torch.int64)[:, None]
        found = log_probability[: len(following)].gather(1, index)[:, 0].cpu().numpy()
        return np.concatenate([found, np.full(part.stop - part.start - len(following), np.nan)])


def _expected(log_probability: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Mean of `value` per row; what has no probability does not count."""
    probability = log_probability.exp()
    return torch.where(probability > 0, probability * value, 0).sum(-1)


def generate(full: Full, last: dict[int, torch.Tensor] | None, cells: int, length: int, ends: set[int]) -> list[list[int]]:
    """Greedy continuations of the prompt on evicted caches, up to `length` tokens each, without the token that ends a text."""
    first = int(torch.argmax(full.logits.float()))
    texts, fed = [[first] for _ in range(cells)], [first] * cells
    ended = [first in ends] * cells
    run = Evicted(full, last, cells)
    for _ in range(length - 1):
        if all(ended):
            break
        output = run.feed([[token] for token in fed])
        with torch.inference_mode():
            fed = [int(torch.argmax(head_logits(full.model, output, output[0][cell : cell + 1])[0, -1].float())) for cell in range(cells)]
        for cell, token in enumerate(fed):
            ended[cell] = ended[cell] or token in ends
            if not ended[cell]:
                texts[cell].append(token)
    return [[token for token in text if token not in ends] for text in texts]
