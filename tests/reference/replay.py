"""A decode-time cache replayed step by step with plain numpy in double precision: slow, and written to be read.

One cache belongs to one selection unit: a KV head with the query heads that read it, or a single query head. The prompt is
read at once or in blocks, then one token per step; every step computes attention over what is held and the new token,
measures it against attention over everything, shows it to the policy, and asks the policy what leaves.
"""

from dataclasses import dataclass, field

import h5py
import numpy as np

NEVER = 0xFFFFFFFF


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Recording:
    """A trace file, read with h5py alone; all tensors in double precision."""

    def __init__(self, path):
        with h5py.File(path, "r") as file:
            self.prompt, self.steps = int(file.attrs["prompt_len"]), int(file.attrs["decode_len"])
            self.digest = str(file.attrs.get("digest", ""))
            self.kv_heads, self.query_heads = int(file.attrs["num_kv_heads"]), int(file.attrs["num_query_heads"])
            self.model_layers = int(file.attrs["num_layers"])
            self.layers = sorted(int(name) for name in file["layers"])
            self.texts = [text.decode() for text in file["tokens/text"][:]] if "tokens/text" in file else []
            self.ids = file["tokens/id"][:].tolist() if "tokens/id" in file else []
            self.final_hidden = file["final_hidden"][:].astype(float) if "final_hidden" in file else None
            self.inv_freq = file["rope/inv_freq"][:].astype(float) if "rope/inv_freq" in file else None
            self.scale = {l: float(file[f"layers/{l:03d}"].attrs.get("softmax_scale", file.attrs["softmax_scale"])) for l in self.layers}
            read = lambda l, name: file[f"layers/{l:03d}/{name}"][:].astype(float)  # noqa: E731
            self.key = {l: read(l, "key") for l in self.layers}
            self.value = {l: read(l, "value") for l in self.layers}
            self.query = {l: read(l, "query") for l in self.layers}
            self.first_query = {l: int(file[f"layers/{l:03d}/query_position"][0]) for l in self.layers}
            self.retention = {l: read(l, "retention") for l in self.layers if f"layers/{l:03d}/retention" in file}
            self.stats = {l: {name: item[:].astype(float) for name, item in file[f"layers/{l:03d}/attention_stats"].items()}
                          for l in self.layers if f"layers/{l:03d}/attention_stats" in file}

    @property
    def group(self):
        return self.query_heads // self.kv_heads

    @property
    def tokens(self):
        return self.prompt + self.steps

    def query_at(self, layer, head, position):
        return self.query[layer][head, position - self.first_query[layer]]

    def attention(self, layer, head, position):
        """The full model's attention of one query over the keys 0..position."""
        key = self.key[layer][head // self.group][: position + 1]
        return softmax(self.scale[layer] * key @ self.query_at(layer, head, position))

    def prompt_sums(self, layer, head, term):
        """Sum over all prompt queries p of term(attention row of p) [p + 1], for every prompt token."""
        total = np.zeros(self.prompt)
        for p in range(self.prompt):
            total[: p + 1] += term(self.attention(layer, head, p), p)
        return total


@dataclass
class Cache:
    """What one unit holds. `held` is in order of position; `hidden` are held tokens that queries cannot read (mask)."""

    layer: int
    unit: int
    kv_head: int
    heads: list
    capacity: int
    value: np.ndarray
    held: list = field(default_factory=list)
    hidden: set = field(default_factory=set)
    evicted_at: np.ndarray = None


class View:
    """One cache after an event. Rows are the event's queries, columns the held tokens."""

    def __init__(self, trace, cache, phase, step, rows, shifted=False):
        self.trace, self.cache, self.phase, self.step, self.rows = trace, cache, phase, step, list(rows)
        self.positions = np.array(cache.held, dtype=int)
        self.key = trace.key[cache.layer][cache.kv_head][self.positions]
        self.value = cache.value[self.positions]
        self.capacity, self.heads = cache.capacity, cache.heads
        self.logits, self.attention = [], []
        seen = np.array([p not in cache.hidden for p in cache.held])
        for head in cache.heads:
            logits = np.array([self._logits(head, row, shifted) for row in self.rows]).reshape(len(self.rows), len(self.positions))
            for i, row in enumerate(self.rows):
                logits[i, (self.positions > row) | ~seen] = -np.inf
            self.logits.append(logits)
            self.attention.append(softmax(logits) if self.rows else logits)

    def _logits(self, head, row, shifted):
        layer, query = self.cache.layer, self.trace.query_at(self.cache.layer, head, row)
        if not shifted:
            return self.trace.scale[layer] * self.key @ query
        slot = np.arange(len(self.positions))
        key = turn(self.key, slot - self.positions, self.trace.inv_freq)
        own = turn(query[None], np.array([slot[self.positions == row][0] - row]), self.trace.inv_freq)[0]
        return self.trace.scale[layer] * key @ own

    def query(self, head, row):
        return self.trace.query_at(self.cache.layer, head, row)

    def __len__(self):
        return len(self.positions)


def turn(x, by, inv_freq):
    """Rotates vectors [n, d] by `by` positions (half layout): the rotary embedding is additive in the position."""
    half = len(inv_freq)
    angle = by[:, None] * inv_freq[None, :]
    a, b = x[:, :half], x[:, half : 2 * half]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), x[:, 2 * half :]], axis=1)


@dataclass
class Choice:
    """What a policy lets go: positions, those of them and of the others that a rounding error could have decided otherwise,
    and whether as many as here must go in any case."""

    evict: set
    doubtful: set = field(default_factory=set)
    counted: bool = True
    values: dict = field(default_factory=dict)  # position -> its value from now on (merging)


def keep_best(positions, score, capacity, sinks=0, recent=0, relative=3e-5, absolute=0.0, forced=()):
    """Everything but the `capacity` best goes: protected ones stay, then the largest score, ties to the earlier position."""
    positions, score = np.asarray(positions), np.asarray(score, dtype=float)
    if len(positions) <= capacity:
        return Choice(set())
    newest = set(positions[len(positions) - min(recent, len(positions)) :].tolist())
    safe = {int(p) for p in positions if p < sinks} | newest | set(forced)
    if len(safe) > capacity:  # sinks in order, then newest to oldest
        order = sorted(p for p in safe if p < sinks) + sorted((p for p in safe if p >= sinks), reverse=True)
        return Choice(set(positions.tolist()) - set(order[:capacity]))
    free = [(-s, int(p)) for s, p in zip(score, positions) if int(p) not in safe]
    free.sort()
    room = capacity - len(safe)
    evict = {p for _, p in free[room:]}
    doubtful = set()
    if 0 < room < len(free):
        last, first = -free[room - 1][0], -free[room][0]
        near = lambda a, b: abs(a - b) <= relative * max(abs(a), abs(b)) + absolute  # noqa: E731
        if near(last, first):
            doubtful = {p for s, p in free if near(-s, last) or near(-s, first)}
    return Choice(evict, doubtful)


@dataclass
class Outcome:
    caches: list
    error: np.ndarray  # [layers, query heads, steps]
    miss: np.ndarray
    size: np.ndarray  # [caches, steps]: tokens that the step could read
    peak: list
    near_ties: int
    disagreements: list


def replay(trace, policy, capacity, follow=None):
    """Replays the whole recording. `follow(cache, when)` gives what another program let go there (when: -1 after the prompt,
    else the step), or None: that is taken over where only a near tie decides otherwise, and noted as a disagreement where not."""
    caches = []
    for layer in trace.layers:
        units = trace.query_heads if policy.unit == "query" else trace.kv_heads
        for u in range(units):
            kv = u // trace.group if policy.unit == "query" else u
            heads = [u] if policy.unit == "query" else list(range(kv * trace.group, (kv + 1) * trace.group))
            caches.append(Cache(layer, u, kv, heads, capacity, trace.value[layer][kv].copy(), evicted_at=np.full(trace.tokens, NEVER, dtype=np.int64)))
    result = Outcome(caches, *(np.zeros((len(trace.layers), trace.query_heads, trace.steps)) for _ in range(2)), np.zeros((len(caches), trace.steps), int), [0] * len(caches), 0, [])
    policy.start(trace, caches, capacity)

    def evict(views, when):
        choices = policy.choose(views, when)
        for i, (cache, choice) in enumerate(zip(caches, choices)):
            chosen = choice.evict
            other = follow(cache, when) if follow else None
            if other is not None and other != chosen:
                differs = other ^ chosen
                if differs <= choice.doubtful and (not choice.counted or len(other) == len(chosen)):
                    result.near_ties += len(differs) if not choice.counted else len(differs) // 2
                else:
                    result.disagreements.append((cache.layer, cache.unit, when, sorted(chosen - other), sorted(other - chosen)))
                chosen = other
            for position, value in choice.values.items():
                cache.value[position] = value
            if policy.masks:
                cache.hidden = chosen
                continue
            cache.held = [p for p in cache.held if p not in chosen]
            for p in chosen:
                cache.evicted_at[p] = when
            if chosen:
                policy.removed(i, chosen)

    def event(phase, step, rows):
        for i, cache in enumerate(caches):
            result.peak[i] = max(result.peak[i], len(cache.held) - len(cache.hidden & set(cache.held)))
        views = [View(trace, cache, phase, step, rows, policy.shifted and phase == "step") for cache in caches]
        policy.observe(views)
        return views

    if policy.block:
        for begin in range(0, trace.prompt, policy.block):
            block = range(begin, min(begin + policy.block, trace.prompt))
            for cache in caches:
                cache.held.extend(block)
            views = event("block", None, block if policy.reads_rows else [])
            if block.stop < trace.prompt:
                evict(views, block.stop - 1 - trace.prompt)
    else:
        for cache in caches:
            cache.held.extend(range(trace.prompt))
        first = max(max(trace.first_query.values()), trace.prompt - policy.prompt_rows)
        views = event("prompt", None, range(first, trace.prompt))
    if policy.prompt_end:
        evict(views, -1)
    for t in range(trace.steps):
        position = trace.prompt + t
        for cache in caches:
            cache.held.append(position)
        views = event("step", t, [position])
        for i, (cache, view) in enumerate(zip(caches, views)):
            readable = [p for p in cache.held if p not in cache.hidden]
            result.size[i, t] = len(readable)
            for g, head in enumerate(cache.heads):
                at = trace.layers.index(cache.layer), head, t
                full = trace.attention(cache.layer, head, position)
                exact = full @ trace.value[cache.layer][cache.kv_head][: position + 1]
                found = view.attention[g][0] @ view.value
                result.error[at] = np.linalg.norm(found - exact) / np.linalg.norm(exact)
                order = np.argsort(-full, kind="stable")
                needed = order[: np.searchsorted(np.cumsum(full[order]), 0.9) + 1]
                result.miss[at] = len(set(needed.tolist()) - set(readable)) / len(needed)
        if policy.due(t):
            evict(views, t)
    return result
