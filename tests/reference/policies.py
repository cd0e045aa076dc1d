"""Decode-time cache policies as their formulas say, in plain numpy: what scores a token, what is protected, when it acts.

Every class watches all caches of a replay (replay.py). `choose` gives one Choice per cache. Sections of the literature notes
that a formula follows stand in the docstrings as paper and equation.
"""

from collections import Counter

import numpy as np

from philox import block, fnv1a, stream_of
from replay import Choice, keep_best, softmax


def pooled(x, width, kind):
    """Stride 1, padded by width // 2: maxima over what is there, means as if zeros stood beyond the ends."""
    half = width // 2
    windows = [x[max(0, i - half) : i + half + 1] for i in range(len(x))]
    return np.array([w.max() if kind == "max" else w.sum() / width for w in windows])


class Policy:
    unit = "kv"
    masks = False
    shifted = False
    prompt_rows = 1 << 30  # queries at the end of the prompt that are shown when it is read at once
    reads_rows = True  # whether queries matter to it at all
    block, prompt_end, every, buffer = 0, True, 1, 0

    def __init__(self, **parameters):
        for name, value in parameters.items():
            assert hasattr(type(self), name), f"{type(self).__name__} has no parameter {name}"
            setattr(self, name, value)

    def start(self, trace, caches, capacity):
        self.trace, self.caches, self.capacity = trace, caches, capacity
        self.state = [self.fresh(cache) for cache in caches]

    def fresh(self, cache):
        return {}

    def observe(self, views):
        for view, state in zip(views, self.state):
            self.see(view, state)

    def see(self, view, state):
        pass

    def removed(self, cache, positions):
        for name, kept in self.state[cache].items():
            if isinstance(kept, dict):
                for p in positions:
                    kept.pop(p, None)

    bounded = True  # holds at most its capacity after an eviction

    def due(self, step):
        """Whether a policy may evict after decode step `step`."""
        return (step + 1) % self.every == 0

    def full(self, view):
        """Whether the cache holds so much that it is asked at all."""
        return not self.bounded or (len(view) > view.capacity and len(view) >= view.capacity + self.buffer)

    def choose(self, views, when):
        return [self.one(v, s, when) if self.full(v) else Choice(set()) for v, s in zip(views, self.state)]

    def one(self, view, state, when):
        raise NotImplementedError


class StreamingLlm(Policy):
    """Sinks and the newest tokens (arXiv 2309.17453)."""

    reads_rows = False
    sinks = 4
    shift = False

    @property
    def shifted(self):
        return self.shift

    def one(self, view, state, when):
        return keep_best(view.positions, view.positions, view.capacity, sinks=self.sinks)


class Accumulated(Policy):
    """A sum per held token over all queries so far, and over the query heads that read the cache; the newest tokens stay,
    of the others the best (H2O and its kin)."""

    unit = "kv"
    sinks = 0
    recent = 0.5  # share of the capacity

    def fresh(self, cache):
        return {"sum": {}}

    def term(self, view, head, row):
        """What one query of head number `head` of the cache adds to each held token, [held]."""
        raise NotImplementedError

    def prompt(self, view, head):
        """What all prompt queries add, [held]."""
        return sum(self.term(view, head, i) for i in range(len(view.rows)))

    def see(self, view, state):
        total = state["sum"]
        for head in range(len(view.heads)):
            added = self.prompt(view, head) if view.phase == "prompt" else sum(self.term(view, head, i) for i in range(len(view.rows)))
            for p, a in zip(view.positions.tolist(), added):
                total[p] = total.get(p, 0.0) + a

    def one(self, view, state, when):
        score = [state["sum"][p] for p in view.positions.tolist()]
        return keep_best(view.positions, score, view.capacity, sinks=self.sinks, recent=int(self.recent * view.capacity))


def column_sums(view, head):
    """Attention that each prompt token got from all prompt queries of a head: recorded sums, or from the queries."""
    trace, cache = view.trace, view.cache
    if cache.layer in trace.stats:
        return trace.stats[cache.layer]["sum"][cache.heads[head]]
    return trace.prompt_sums(cache.layer, cache.heads[head], lambda a, p: a)


class H2o(Accumulated):
    """Accumulated attention (arXiv 2306.14048). removal=mask: the bookkeeping of the authors' masks, which have one column more
    than the cache: the last `recent` columns and the heaviest older tokens are visible, and what is neither loses its score,
    but for the token that just left the recent ones, which hides for one step."""

    removal = "drop"

    @property
    def masks(self):
        return self.removal == "mask"

    def term(self, view, head, row):
        return view.attention[head][row]

    def prompt(self, view, head):
        return column_sums(view, head)

    def one(self, view, state, when):
        if not self.masks:
            return super().one(view, state, when)
        recent = int(self.recent * view.capacity)
        old = view.positions[: len(view) - recent]
        score = [state["sum"][p] for p in old.tolist()]
        choice = keep_best(old, score, view.capacity - recent)
        for p in choice.evict:
            state["sum"][p] = 0.0
        if recent and len(old) < len(view):
            choice.evict = choice.evict | {int(view.positions[len(old)])}
        return choice


class Vatp(Accumulated):
    """Accumulated attention times the L1 norm of the value (arXiv 2406.12335); the first tokens stay."""

    sinks = 20

    def term(self, view, head, row):
        return view.attention[head][row] * np.abs(view.value).sum(1)

    def prompt(self, view, head):
        return column_sums(view, head) * np.abs(view.value).sum(1)


class Tova(Policy):
    """The newest query's attention, averaged over all query heads of the layer: one set per layer (arXiv 2401.06104)."""

    prompt_rows = 1
    newest = False

    def see(self, view, state):
        if len(view.rows):
            state["row"] = sum(a[-1] for a in view.attention)

    def choose(self, views, when):
        if not any(self.full(view) for view in views):
            return [Choice(set()) for _ in views]
        out = []
        for view in views:
            mates = [s["row"] for v, s in zip(views, self.state) if v.cache.layer == view.cache.layer]
            out.append(keep_best(view.positions, sum(mates) / view.trace.query_heads, view.capacity, recent=int(self.newest)))
        return out


class Scissorhands(Policy):
    """Counts, over the last `history` queries, how often a token got less than its even share, 1 / t of the t tokens that the
    query could read; over the capacity, those with the most counts leave until the share `keep` of it is left (arXiv 2305.17118)."""

    history = 400
    recent = 10
    keep = 0.5

    def fresh(self, cache):
        return {"rows": []}

    @property
    def prompt_rows(self):
        return self.history

    def see(self, view, state):
        for i, row in enumerate(view.rows):
            seen = int((view.positions <= row).sum())
            state["rows"].append({int(p): [a[i, j] * seen for a in view.attention] for j, p in enumerate(view.positions) if p <= row})
        state["rows"] = state["rows"][-self.history :]

    def one(self, view, state, when):
        if len(view) <= view.capacity:
            return Choice(set())
        count, unsure = [], False
        for p in view.positions.tolist():
            shares = np.concatenate([row[p] for row in state["rows"] if p in row] or [[]])
            count.append(int((shares < 1).sum()))
            unsure |= bool((np.abs(shares - 1) < 2e-6).any())
        choice = keep_best(view.positions, [-c for c in count], max(1, int(self.keep * view.capacity)), recent=self.recent, relative=0)
        choice.doubtful = set(view.positions.tolist()) if unsure else set()  # ties are decided by the position, for certain
        return choice


class Corm(Policy):
    """A token leaves when none of the last `window` queries gave it its even share, 1 / t of the t tokens so far (or of those
    held); the newest `recent` stay; the cache has the size that comes of it (arXiv 2404.15949). A token is important to its
    own query: it enters as a column of ones."""

    bounded = False
    window = 256
    recent = 256
    threshold = "seen"

    def fresh(self, cache):
        return {"rows": []}

    @property
    def prompt_rows(self):
        return self.window

    def see(self, view, state):
        for i, row in enumerate(view.rows):
            t = row + 1 if self.threshold == "seen" else int((view.positions <= row).sum())
            state["rows"].append({int(p): max(a[i, j] for a in view.attention) * t for j, p in enumerate(view.positions) if p < row})
        state["rows"] = state["rows"][-self.window :]

    def one(self, view, state, when):
        if len(state["rows"]) < self.window:
            return Choice(set(), counted=False)
        evict, doubtful = set(), set()
        for p in view.positions[: max(0, len(view) - self.recent)].tolist():
            share = max(row.get(p, np.inf) for row in state["rows"])
            if share < 1:
                evict.add(p)
            if abs(share - 1) < 1e-5:
                doubtful.add(p)
        return Choice(evict, doubtful, counted=False)


class Keyformer(Accumulated):
    """Accumulated softmax of (logit + Gumbel noise) / temperature, which rises with every step (arXiv 2403.09054). freeze: the
    bookkeeping of the authors' masks, in which a token that leaves the recent ones is gone for good."""

    recent = 0.3
    temperature = 1.0
    rise = 0.01
    seed = 0
    freeze = False

    def noise(self, view, head, position):
        """Gumbel noise of the query at `position`, [held]: word i % 4 of block (position, i / 4) of the head's stream, as a
        uniform number in the middle of its 2^-32 wide cell."""
        stream = stream_of(fnv1a(view.trace.digest), view.cache.layer, view.heads[head])
        words = [block(self.seed, stream, position << 32 | int(i) // 4)[int(i) % 4] for i in view.positions]
        return -np.log(-np.log((np.array(words) + 0.5) / 2**32))

    def term(self, view, head, row):
        heat = self.temperature + self.rise * (view.step + 1 if view.phase == "step" else 0)
        return softmax((view.logits[head][row] + self.noise(view, head, view.rows[row])) / heat)

    def one(self, view, state, when):
        if not self.freeze or when < 0:
            return super().one(view, state, when)
        keys = view.capacity - int(self.recent * view.capacity)  # the oldest of the others leaves
        of_prompt = [p for p in view.positions.tolist() if p < view.trace.prompt][:keys]
        return keep_best(view.positions, view.positions, view.capacity, forced=of_prompt)


class Cake(Policy):
    """At the prompt's end mean + gamma x unbiased variance of the window's attention, then the newest query's row; both pooled
    over the tokens before the window, mean over the group (arXiv 2503.12491). Every layer has the same capacity here."""

    window = 32
    gamma = 200.0
    kernel = 5

    @property
    def prompt_rows(self):
        return self.window

    def see(self, view, state):
        if not len(view.rows):
            return
        older = slice(0, max(0, len(view) - self.window))
        if view.phase == "prompt":
            rows = [a[:, older].mean(0) + self.gamma * a[:, older].var(0, ddof=1) for a in view.attention]
        else:
            rows = [a[-1, older] for a in view.attention]
        state["score"] = np.mean([pooled(row, self.kernel, "avg") for row in rows], axis=0)

    def one(self, view, state, when):
        score = np.concatenate([state["score"], np.zeros(len(view) - len(state["score"]))])
        return keep_best(view.positions, score, view.capacity, recent=self.window, absolute=1e-10)


class RKv(Policy):
    """Importance under the last queries, less redundancy of the keys (arXiv 2505.24133)."""

    window = 8
    kernel = 7
    mix = 0.1
    threshold = 0.5
    every = 128

    @property
    def prompt_rows(self):
        return self.window

    def due(self, step):
        """On the first step after the number of tokens fed became a multiple."""
        return (self.trace.prompt + step) % self.every == 0

    def fresh(self, cache):
        return {"queries": [[] for _ in cache.heads]}

    def see(self, view, state):
        for g, head in enumerate(view.heads):
            state["queries"][g] = (state["queries"][g] + [view.query(head, row) for row in view.rows])[-self.window :]

    def redundancy(self, key):
        """Softmax over tokens of the mean similarity to the other keys, the newest near-duplicate of each row left out."""
        unit = key / np.linalg.norm(key, axis=1, keepdims=True)
        similar = unit @ unit.T
        np.fill_diagonal(similar, 0)
        for row in similar:
            above = np.flatnonzero(row > self.threshold)
            row[above[-1] if len(above) else 0] = 0
        return softmax(similar.mean(0))

    def score(self, view, state):
        """Z of the tokens older than the window."""
        older = len(view) - self.window
        logits = np.max([[view.trace.scale[view.cache.layer] * view.key[:older] @ q for q in queries] for queries in state["queries"]], axis=0)
        importance = pooled(softmax(logits).mean(0), self.kernel, "max")
        return self.mix * importance - (1 - self.mix) * self.redundancy(view.key)[:older]

    def one(self, view, state, when):
        score = np.concatenate([self.score(view, state), np.full(self.window, np.inf)])
        return keep_best(view.positions, score, view.capacity, recent=self.window, absolute=2e-7)


class TrimKv(Policy):
    """A learned rate per token, decaying with age (arXiv 2512.03324): (tokens seen + 1 - position) log beta. pool: what shares
    a budget. With floor every head has int(floor x capacity) of its own, and as many more as it has among the best of the rest
    of the total over all heads that share."""

    reads_rows = False
    buffer = 128
    pool = "head"
    floor = 0.0

    @property
    def bounded(self):
        return self.pool == "head"

    def age_score(self, view, when):
        seen = view.trace.prompt + when + 1
        log_beta = view.trace.retention[view.cache.layer][view.cache.kv_head][view.positions]
        return (seen + 1 - view.positions) * log_beta

    def choose(self, views, when):
        score = [self.age_score(view, when) for view in views]
        if self.pool == "head":
            return [keep_best(v.positions, s, v.capacity) if self.full(v) else Choice(set()) for v, s in zip(views, score)]
        groups = {}
        for i, view in enumerate(views):
            groups.setdefault(view.cache.layer if self.pool == "layer" else 0, []).append(i)
        out = [Choice(set(), counted=False) for _ in views]
        for members in groups.values():
            held, limit = sum(len(views[i]) for i in members), len(members) * (self.capacity + self.buffer)
            if held > limit if self.pool == "layer" else held >= limit:
                for i, choice in zip(members, self.share(members, views, score)):
                    out[i] = choice
        return out

    def share(self, members, views, score):
        total = len(members) * self.capacity
        ranked = sorted((-s, i, int(p)) for i in members for s, p in zip(score[i], views[i].positions))
        best = ranked[: int(total - self.floor * total)]
        near = False
        if 0 < len(best) < len(ranked):
            near = abs(best[-1][0] - ranked[len(best)][0]) <= 3e-5 * abs(best[-1][0])
        for i in members:
            room = sum(1 for _, j, _ in best if j == i) + int(self.floor * self.capacity)
            choice = keep_best(views[i].positions, score[i], room)
            yield Choice(choice.evict, set(views[i].positions.tolist()) if near else choice.doubtful, counted=not near)


class ObCache(Accumulated):
    """First-order damage to the output when a value, a key or both are set to zero (arXiv 2510.07651)."""

    what = "joint"  # value, key, joint
    window = 64

    @property
    def prompt_rows(self):
        return self.window

    def damage(self, a, s, value):
        out = a @ value
        vv = (value**2).sum(1)
        s = np.where(np.isfinite(s), s, 0.0)
        of_value = a**2 * vv
        of_key = (a * s) ** 2 * ((value - out) ** 2).sum(1)
        cross = 2 * a**2 * s * (vv - value @ out)
        return {"value": of_value, "key": of_key, "joint": of_value + of_key + cross}[self.what]

    def term(self, view, head, row):
        return self.damage(view.attention[head][row], view.logits[head][row], view.value)


class Caote(Policy):
    """Change of the output when one token leaves and the rest is renormalised, on the weights of a base score
    (arXiv 2504.14051): alpha / (1 - alpha) |v - X|, X the weighted mean of the values; fast: their plain mean."""

    base = "tova"  # tova: the newest query's attention; h2o: accumulated attention
    fast = False
    recent = 0.0
    block = 128

    def fresh(self, cache):
        return {"sum": [{} for _ in cache.heads]}

    def see(self, view, state):
        for g in range(len(view.heads)):
            if self.base == "tova":
                if len(view.rows):
                    state["sum"][g] = dict(zip(view.positions.tolist(), view.attention[g][-1]))
                continue
            total = state["sum"][g]
            added = column_sums(view, g) if view.phase == "prompt" else view.attention[g].sum(0)
            for p, a in zip(view.positions.tolist(), added):
                total[p] = total.get(p, 0.0) + a

    def cost(self, alpha, value):
        alpha = alpha / alpha.sum()
        middle = value.mean(0) if self.fast else alpha @ value
        with np.errstate(divide="ignore"):
            return alpha / (1 - alpha) * np.linalg.norm(value - middle, axis=1)

    def one(self, view, state, when):
        costs = [self.cost(np.array([total[p] for p in view.positions.tolist()]), view.value) for total in state["sum"]]
        return keep_best(view.positions, np.mean(costs, axis=0), view.capacity, recent=int(self.recent * view.capacity))

    def removed(self, cache, positions):
        for total in self.state[cache]["sum"]:
            for p in positions:
                total.pop(p, None)


class KeyDiff(Policy):
    """Keys that differ most from the mean direction of the keys held (arXiv 2504.15364)."""

    reads_rows = False
    block = 128

    def score(self, key):
        unit = key / np.linalg.norm(key, axis=1, keepdims=True)
        anchor = unit.mean(0)
        return -(unit @ anchor) / np.linalg.norm(anchor)

    def one(self, view, state, when):
        return keep_best(view.positions, self.score(view.key), view.capacity, absolute=5e-7)


class KNorm(KeyDiff):
    """Smallest key norms (arXiv 2406.11430)."""

    block = 0

    def score(self, key):
        return -np.linalg.norm(key, axis=1)


def sentences(texts, delimiters):
    """Half-open ranges of tokens; a sentence ends with a token of `delimiters`, and the last one may be unfinished."""
    begin, out = 0, []
    for i, text in enumerate(texts):
        if text in delimiters:
            out.append((begin, i + 1))
            begin = i + 1
    return out, begin


class SkipKv(RKv):
    """R-KV, and whole sentences that a later one repeats sink below everything else (arXiv 2512.07993)."""

    repeats = 0.95
    similarity = "hidden"
    delimiters = ("\n", "\n\n", ".", ".\n", ".\n\n", ")\n\n", "?\n\n")

    def alike(self, a, b):
        """Cosine of the mean final hidden states of two sentences; or, without them, shared token ids."""
        if self.similarity == "hidden":
            x, y = (self.trace.final_hidden[begin:end].mean(0) for begin, end in (a, b))
            return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        x, y = (Counter(self.trace.ids[begin:end]) for begin, end in (a, b))
        return 2 * (x & y).total() / (x.total() + y.total())

    def penalties(self, seen):
        """Sentence -> similarity, among the sentences complete within the first `seen` tokens: the earlier one of a pair is
        marked, and the latest mark stays."""
        complete, _ = sentences(self.trace.texts[:seen], self.delimiters)
        marks = {}
        for j in range(len(complete)):
            for i in range(j):
                similar = self.alike(complete[i], complete[j])
                if similar > self.repeats:
                    marks[complete[i]] = similar
        return marks

    def score(self, view, state):
        z = super().score(view, state)
        seen = view.trace.prompt + (view.step + 1 if view.step is not None else 0)
        older = view.positions[: len(z)]
        for (begin, end), similar in self.penalties(seen).items():
            inside = (older >= begin) & (older < end)
            if inside.sum() >= 2:
                z[inside] -= similar
        return z


class Dms(Policy):
    """Every token is judged once, when it leaves the window of the newest ones: below the threshold it goes (kvpress' DMS press,
    here around key norms)."""

    reads_rows = False
    bounded = False
    threshold = 0.0
    window = 128

    def fresh(self, cache):
        return {"judged": set()}

    def one(self, view, state, when):
        newest = view.trace.prompt + when
        score = {int(p): s for p, s in zip(view.positions, KNorm().score(view.key)) if p <= newest - self.window and int(p) not in state["judged"]}
        state["judged"] |= set(score)
        doubtful = {p for p, s in score.items() if abs(s - self.threshold) <= 1e-6 * abs(self.threshold)}
        return Choice({p for p, s in score.items() if s < self.threshold}, doubtful, counted=False)


class Decoding(Policy):
    """A prompt-time score on the whole cache, every `interval` steps down to the target; the prompt is not cut (kvpress'
    decoding press). `score`: knorm, keydiff, streaming_llm or snapkv with its window."""

    prompt_end = False
    every = 512
    score = "knorm"
    window = 64

    @property
    def prompt_rows(self):
        return self.window if self.prompt_end else 0

    def fresh(self, cache):
        return {"queries": []}

    def see(self, view, state):
        state["queries"] += view.rows  # kvpress remembers 256; shorter windows see no difference
        state["queries"] = state["queries"][-256:]

    def slot_scores(self, view, state):
        if self.score == "knorm":
            return KNorm().score(view.key)
        if self.score == "keydiff":
            return KeyDiff().score(view.key)
        rows = state["queries"][-self.window :]
        older = len(view) - len(rows)
        pools = []
        for head in view.heads:
            attention = []
            for row in rows:
                logits = view.trace.scale[view.cache.layer] * view.key @ view.query(head, row)
                logits[view.positions > row] = -np.inf
                attention.append(softmax(logits)[:older])
            pools.append(pooled(np.mean(attention, axis=0), 5, "avg"))
        return np.concatenate([np.mean(pools, axis=0), np.full(len(rows), np.inf)])

    def one(self, view, state, when):
        if self.score == "streaming_llm":
            return keep_best(view.positions, view.positions, view.capacity, sinks=4)
        recent = min(self.window, len(state["queries"])) if self.score == "snapkv" else 0
        return keep_best(view.positions, self.slot_scores(view, state), view.capacity, recent=recent, absolute=5e-7 if self.score == "keydiff" else 0)


class Cam(Policy):
    """Decoding whose evicted values are spread over the tokens kept after them (kvpress' CAM press), one set per layer."""

    prompt_end = False
    every = 512
    merge = 32
    seed = 0

    def fresh(self, cache):
        return {"gathered": {}}

    def see(self, view, state):
        for p, a in zip(view.positions.tolist(), np.mean([a[-1] for a in view.attention], axis=0) if view.phase == "step" else np.zeros(len(view))):
            state["gathered"][p] = state["gathered"].get(p, 0.0) + a

    def choose(self, views, when):
        out = [Choice(set()) for _ in views]
        for layer in {view.cache.layer for view in views}:
            mates = [i for i, view in enumerate(views) if view.cache.layer == layer]
            if not any(self.full(views[i]) for i in mates):
                continue
            score = np.mean([KNorm().score(views[i].key) for i in mates], axis=0)
            choice = keep_best(views[mates[0]].positions, score, self.capacity)
            worth = dict(zip(views[mates[0]].positions.tolist(), score))
            candidates = sorted(choice.evict, key=lambda p: (-worth[p], -p))[: self.every]
            for i in mates:
                out[i] = Choice(choice.evict, choice.doubtful, values=self.merged(views[i], self.state[i]["gathered"], candidates, choice.evict, when))
        return out

    def merged(self, view, gathered, candidates, evict, when):
        kept = [p for p in view.positions.tolist() if p not in evict]
        value = dict(zip(view.positions.tolist(), view.value))
        new = {}
        for m in candidates:
            after = [p for p in kept if p > m][: self.merge]
            if not after:
                continue
            mean = np.mean([gathered[p] for p in after])
            chance = min(1.0, gathered[m] / mean) if mean > 0 else float(gathered[m] > 0)
            stream = stream_of(fnv1a(view.trace.digest), view.cache.layer, view.cache.kv_head)
            drawn = (block(self.seed, stream, when << 32 | m)[0] + 0.5) / 2**32
            if drawn < chance:
                for p in after:
                    new[p] = new.get(p, value[p]) + value[m] / len(after)
        return new
