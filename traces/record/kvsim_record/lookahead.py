"""The cheap first pass of Lookahead Q-Cache (arXiv 2505.20334): evict with SnapKV, decode a few pseudo tokens, keep their queries.

As in the authors' code: per query head, the last `window` prompt queries score all prompt keys (softmax over all of
them, summed over the window, pooled), the best `capacity - window` of the older keys and the window itself stay. Decoding
goes on greedily at the true positions on that small cache; pseudo tokens see each other; a token that ends the text
stops the pass and is not fed. Ties go to the earlier position.
"""

import re
from dataclasses import dataclass

import numpy as np

from .errors import RecordError

_SPEC = re.compile(r"\s*([a-z_0-9]+)\s*(?:\((.*)\))?\s*")
_DEFAULTS = {"window": 32, "kernel": 7, "pool": "max"}


@dataclass
class Lookahead:
    """`length` pseudo tokens on caches of each of `budgets` tokens per query head, kept by SnapKV with these parameters."""

    length: int
    budgets: list[int]
    window: int = 32
    kernel: int = 7
    pool: str = "max"

    @property
    def method(self) -> str:
        return f"snapkv(window={self.window},kernel={self.kernel},pool={self.pool},unit=query)"


def parse_policy(spec: str, length: int, budgets: list[int]) -> Lookahead:
    """Reads `snapkv`, `snapkv(32)` or `snapkv(window=32,kernel=7,pool=max|avg)`."""
    match = _SPEC.fullmatch(spec)
    if not match or match.group(1) != "snapkv":
        raise RecordError(f"--lookahead-policy {spec}: snapkv(window=32,kernel=7,pool=max) is the one there is")
    values = dict(_DEFAULTS)
    for number, item in enumerate(filter(None, (match.group(2) or "").split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals and number == 0:
            key, value = "window", key
        if key not in values:
            raise RecordError(f"--lookahead-policy {spec}: no parameter '{key}'; there are window, kernel and pool")
        good = value in ("max", "avg") if key == "pool" else value.isdecimal() and int(value) > 0
        if not good:
            raise RecordError(f"--lookahead-policy {spec}: {key}={value} is not allowed")
        values[key] = value if key == "pool" else int(value)
    if values["kernel"] % 2 == 0:
        raise RecordError(f"--lookahead-policy {spec}: the kernel must be odd")
    small = [budget for budget in budgets if budget <= values["window"]]
    if small:
        raise RecordError(f"--lookahead-budget {small[0]}: must be above the window of {values['window']}, which it includes")
    return Lookahead(length, budgets, **values)


def snapkv_kept(attention, window: int, kernel: int, pool: str, capacity: int) -> np.ndarray:
    """Kept positions [Hq, capacity], ascending, from the window queries' attention [Hq, window, T] (float)."""
    import torch

    heads, _, tokens = attention.shape
    if tokens <= capacity:
        return np.tile(np.arange(tokens, dtype=np.int32), (heads, 1))
    score = attention.sum(dim=1)[:, : tokens - window]
    if pool == "max":
        score = torch.nn.functional.max_pool1d(score, kernel, stride=1, padding=kernel // 2)
    else:
        score = torch.nn.functional.avg_pool1d(score, kernel, stride=1, padding=kernel // 2)
    order = np.argsort(-score.cpu().numpy(), axis=1, kind="stable")[:, : capacity - window]
    recent = np.tile(np.arange(tokens - window, tokens), (heads, 1))
    return np.concatenate([np.sort(order, axis=1), recent], axis=1).astype(np.int32)


def run_lookahead(model, recorder, settings: Lookahead, logits, ends: set[int], progress) -> list:
    """One pass per budget, after the prompt has been fed and before the answer is."""
    from .lookahead_pass import Pass

    progress.phase("lookahead", len(settings.budgets) * settings.length, "token")
    return [Pass(model, recorder, settings, budget).run(logits, ends, progress) for budget in settings.budgets]
