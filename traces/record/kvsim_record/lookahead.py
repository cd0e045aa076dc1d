"""The cheap first pass of Lookahead Q-Cache (arXiv 2505.20334): evict, decode a few pseudo tokens, keep their queries.

As in the authors' code. `snapkv`: per query head, the last `window` prompt queries score all prompt keys (softmax over all of
them, summed over the window, pooled), the best `capacity - window` of the older keys and the window itself stay; ties go to
the earlier position. `streaming_llm`: the first `sinks` and the newest tokens. `full`: nothing is evicted, so the pass
shows what the method could reach at best. Decoding goes on greedily at the true positions on that small cache; pseudo
tokens see each other; a token that ends the text stops the pass and is not fed.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from .errors import RecordError

_SPEC = re.compile(r"\s*([a-z_0-9]+)\s*(?:\((.*)\))?\s*")


@dataclass
class SnapKV:
    window: int = 32
    kernel: int = 7
    pool: str = "max"
    name = "snapkv"
    per_query_head = True

    @property
    def method(self) -> str:
        return f"snapkv(window={self.window},kernel={self.kernel},pool={self.pool},unit=query)"

    @property
    def least(self) -> int:
        """The smallest budget that leaves something to choose."""
        return self.window + 1

    def kept(self, attention, tokens: int, capacity: int, heads: int) -> np.ndarray:
        return snapkv_kept(attention[:, -self.window :], self.window, self.kernel, self.pool, capacity)


@dataclass
class StreamingLLM:
    sinks: int = 4
    name = "streaming_llm"
    window = 0
    per_query_head = False

    @property
    def method(self) -> str:
        return f"streaming_llm(sinks={self.sinks})"

    @property
    def least(self) -> int:
        return self.sinks + 1

    def kept(self, attention, tokens: int, capacity: int, heads: int) -> np.ndarray:
        capacity = min(capacity, tokens)
        sinks = min(self.sinks, capacity)
        one = np.concatenate([np.arange(sinks), np.arange(tokens - capacity + sinks, tokens)])
        return np.tile(one.astype(np.int32), (heads, 1))


@dataclass
class Full:
    name = "full"
    window = 0
    per_query_head = False
    method = "full"
    least = 0

    def kept(self, attention, tokens: int, capacity: int, heads: int) -> np.ndarray:
        return np.tile(np.arange(tokens, dtype=np.int32), (heads, 1))


_POLICIES = {"snapkv": SnapKV, "streaming_llm": StreamingLLM, "full": Full, "fullkv": Full}


@dataclass
class FirstPass:
    """One pass to run: on a cache of `capacity` tokens per head (None: of all of them)."""

    policy: SnapKV | StreamingLLM | Full
    capacity: int | None

    @property
    def name(self) -> str:
        return self.policy.name if self.capacity is None else f"{self.policy.name}-{self.capacity}"


@dataclass
class Lookahead:
    """`length` pseudo tokens in each of `passes`."""

    length: int
    passes: list[FirstPass] = field(default_factory=list)

    @property
    def window(self) -> int:
        """Last prompt queries that the passes need."""
        return max(one.policy.window for one in self.passes)


def parse(specs: list[str], length: int, budgets: list[int]) -> Lookahead:
    """One pass per policy and budget; `full` has one."""
    lookahead = Lookahead(length)
    for spec in specs:
        policy = parse_policy(spec)
        for budget in [None] if isinstance(policy, Full) else budgets:
            if budget is not None and budget < policy.least:
                raise RecordError(f"--lookahead-budget {budget}: {policy.method} needs at least {policy.least} tokens")
            one = FirstPass(policy, budget)
            if any(other.name == one.name for other in lookahead.passes):
                raise RecordError(f"--lookahead-policy {spec}: there is a pass {one.name} already; give each policy once")
            lookahead.passes.append(one)
    return lookahead


def parse_policy(spec: str) -> SnapKV | StreamingLLM | Full:
    """Reads e.g. `snapkv`, `snapkv(32)`, `snapkv(window=32,kernel=7,pool=avg)`, `streaming_llm(sinks=4)`, `full`."""
    match = _SPEC.fullmatch(spec)
    kind = _POLICIES.get(match.group(1)) if match else None
    if kind is None:
        raise RecordError(f"--lookahead-policy {spec}: expected snapkv(window=32,kernel=7,pool=max), streaming_llm(sinks=4) or full")
    policy = kind()
    names = list(getattr(policy, "__dataclass_fields__"))
    for number, item in enumerate(filter(None, (match.group(2) or "").split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals and number == 0 and names:
            key, value = names[0], key
        if key not in names:
            has = f"there are {', '.join(names)}" if names else "it has none"
            raise RecordError(f"--lookahead-policy {spec}: no parameter '{key}'; {has}")
        good = value in ("max", "avg") if key == "pool" else value.isdecimal() and int(value) > 0
        if not good:
            raise RecordError(f"--lookahead-policy {spec}: {key}={value} is not allowed")
        setattr(policy, key, value if key == "pool" else int(value))
    if isinstance(policy, SnapKV) and policy.kernel % 2 == 0:
        raise RecordError(f"--lookahead-policy {spec}: the kernel must be odd")
    return policy


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
    """One pass after the other, after the prompt has been fed and before the answer is."""
    from .lookahead_pass import Pass

    progress.phase("lookahead", len(settings.passes) * settings.length, "token")
    return [Pass(model, recorder, one, settings.length).run(logits, ends, progress) for one in settings.passes]
