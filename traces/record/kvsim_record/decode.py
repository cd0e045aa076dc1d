"""Chooses the next token: greedy, sampled with a seed, or from a given answer."""

import torch

from .settings import Sampling


class Chooser:
    def __init__(self, sampling: Sampling):
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def next(self, logits: torch.Tensor) -> int:
        """The token for one row of logits [vocabulary]; ties go to the smaller id."""
        logits = logits.detach().float().cpu()
        if not self._sampling.enabled:
            return int(torch.argmax(logits))
        probability = torch.softmax(logits / self._sampling.temperature, dim=-1)
        ordered, order = torch.sort(probability, descending=True, stable=True)
        before = torch.cumsum(ordered, dim=0) - ordered
        ordered = torch.where(before < self._sampling.top_p, ordered, torch.zeros(()))
        return int(order[torch.multinomial(ordered, 1, generator=self._random)])


def end_tokens(model, tokenizer) -> set[int]:
    """Ids that end a text, as model and tokenizer name them."""
    found: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        found.update(value if isinstance(value, (list, tuple)) else [value] if value is not None else [])
    return found
