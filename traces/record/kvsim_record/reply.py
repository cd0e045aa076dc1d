"""Lets the model answer the earlier turns of a conversation that come without an answer."""

import torch

from .decode import Chooser, end_tokens
from .models import Loaded
from .prompt import Prompt
from .recorder import last_logits, whole_cache
from .settings import Sampling


def reply(loaded: Loaded, prompt: Prompt, sampling: Sampling, limit: int) -> str:
    """The model's answer to the prompt, at most `limit` tokens, without the token that ends it."""
    chooser, ends = Chooser(sampling), end_tokens(loaded.model, loaded.tokenizer)
    cache, fed, answer = whole_cache(loaded.model), list(prompt.ids), []
    with torch.inference_mode():
        for _ in range(limit):
            ids = torch.tensor([fed], device=loaded.model.device)
            token = chooser.next(last_logits(loaded.model, ids, cache))
            if token in ends:
                break
            answer.append(token)
            fed = [token]
    return loaded.tokenizer.decode(answer, skip_special_tokens=True).strip()
