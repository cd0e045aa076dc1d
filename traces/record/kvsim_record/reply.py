"""Lets the model answer the earlier turns of a conversation that come without an answer."""

import torch

from .decode import Chooser, end_tokens
from .models import Loaded
from .prompt import Prompt
from .recorder import whole_cache
from .settings import Sampling


def reply(loaded: Loaded, prompt: Prompt, sampling: Sampling, limit: int) -> str:
    """The model's answer to the prompt, at most `limit` tokens, without the token that ends it."""
    chooser, ends = Chooser(sampling), end_tokens(loaded.model, loaded.tokenizer)
    cache, fed, answer = whole_cache(loaded.model), list(prompt.ids), []
    with torch.inference_mode():
        for _ in range(limit):
            ids = torch.tensor([fed], device=loaded.model.device)
            logits = loaded.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
            token = chooser.next(logits)
            if token in ends:
                break
            answer.append(token)
            fed = [token]
    return loaded.tokenizer.decode(answer, skip_special_tokens=True).strip()
