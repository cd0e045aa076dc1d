"""`kvsim run` against the plain replay of this folder: the same tokens leave at the same steps, policy by policy.

Both see the same recordings. Where the program's choice differs only by tokens whose scores are as good as equal, the replay
takes the program's side, so that one near tie does not hide what follows; they are counted and must be few.
"""

import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

import policies as reference
import recordings
from replay import NEVER, Recording, replay

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("KVSIM", ROOT / "build" / "kvsim"))
HARBOUR = ROOT / "tests" / "data" / "smollm2-harbour.h5"
IN_PROMPT = 0xFFFFFFFE
pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="kvsim is not built")

# (spec, policy of policies.py and its parameters); capacities 20 and 44 on the tail of the recording, all queries recorded.
TAIL = [
    ("decode:streaming_llm", reference.StreamingLlm, {}),
    ("decode:streaming_llm(sinks=2,shift=true)", reference.StreamingLlm, dict(sinks=2, shift=True)),
    ("decode:streaming_llm(block=16)", reference.StreamingLlm, dict(block=16)),
    ("decode:h2o", reference.H2o, {}),
    ("decode:h2o(unit=query,recent=0.25)", reference.H2o, dict(unit="query", recent=0.25)),
    ("decode:h2o(removal=mask,unit=query)", reference.H2o, dict(removal="mask", unit="query")),
    ("decode:h2o(every=4)", reference.H2o, dict(every=4)),
    ("decode:h2o(buffer=6)", reference.H2o, dict(buffer=6)),
    ("decode:h2o(block=16)", reference.H2o, dict(block=16)),
    ("decode:tova", reference.Tova, {}),
    ("decode:tova(newest=true,block=16)", reference.Tova, dict(newest=True, block=16)),
    ("decode:scissorhands(history=24,recent=4)", reference.Scissorhands, dict(history=24, recent=4)),
    ("decode:scissorhands(history=24,recent=4,unit=query,keep=0.75)", reference.Scissorhands, dict(history=24, recent=4, unit="query", keep=0.75)),
    ("decode:vatp(sinks=3)", reference.Vatp, dict(sinks=3)),
    ("decode:vatp(sinks=3,unit=query)", reference.Vatp, dict(sinks=3, unit="query")),
    ("decode:corm(window=8,recent=8)", reference.Corm, dict(window=8, recent=8)),
    ("decode:corm(window=6,recent=2,threshold=held,unit=query)", reference.Corm, dict(window=6, recent=2, threshold="held", unit="query")),
    ("decode:keyformer", reference.Keyformer, {}),
    ("decode:keyformer(unit=query,rise=0.2,seed=5,recent=0.5)", reference.Keyformer, dict(unit="query", rise=0.2, seed=5, recent=0.5)),
    ("decode:keyformer(freeze=true)", reference.Keyformer, dict(freeze=True)),
    ("decode:decoding(every=8)", reference.Decoding, dict(every=8)),
    ("decode:decoding(score=keydiff,every=8,prompt_end=true)", reference.Decoding, dict(score="keydiff", every=8, prompt_end=True)),
    ("decode:decoding(score=streaming_llm,every=16)", reference.Decoding, dict(score="streaming_llm", every=16)),
    ("decode:decoding(score=snapkv(window=6),every=8)", reference.Decoding, dict(score="snapkv", window=6, every=8)),
    ("decode:cake(window=8)", reference.Cake, dict(window=8)),
    ("decode:cake(window=8,gamma=0,kernel=3)", reference.Cake, dict(window=8, gamma=0.0, kernel=3)),
    ("decode:r_kv(every=8)", reference.RKv, dict(every=8)),
    ("decode:r_kv(every=1,mix=0.7,kernel=5,window=4)", reference.RKv, dict(every=1, mix=0.7, kernel=5, window=4)),
    ("decode:skipkv(every=8,repeats=0.4)", reference.SkipKv, dict(every=8, repeats=0.4)),
    ("decode:skipkv(every=8,repeats=0.3,similarity=tokens)", reference.SkipKv, dict(every=8, repeats=0.3, similarity="tokens")),
    ("decode:trim_kv(buffer=0)", reference.TrimKv, dict(buffer=0)),
    ("decode:trim_kv(buffer=7)", reference.TrimKv, dict(buffer=7)),
    ("decode:trim_kv(buffer=4,pool=layer)", reference.TrimKv, dict(buffer=4, pool="layer")),
    ("decode:trim_kv(buffer=4,pool=model)", reference.TrimKv, dict(buffer=4, pool="model")),
    ("decode:trim_kv(buffer=4,pool=model,floor=0.25)", reference.TrimKv, dict(buffer=4, pool="model", floor=0.25)),
    ("decode:obcache", reference.ObCache, {}),
    ("decode:obcache(what=value,unit=query,window=16)", reference.ObCache, dict(what="value", unit="query", window=16)),
    ("decode:obcache(what=key)", reference.ObCache, dict(what="key")),
    ("decode:caote", reference.Caote, {}),
    ("decode:caote(fast=true,block=16)", reference.Caote, dict(fast=True, block=16)),
    ("decode:caote(base=h2o,block=0,recent=0.25)", reference.Caote, dict(base="h2o", block=0, recent=0.25)),
    ("decode:caote(base=h2o,fast=true,block=16)", reference.Caote, dict(base="h2o", fast=True, block=16)),
    ("decode:keydiff", reference.KeyDiff, {}),
    ("decode:keydiff(block=16)", reference.KeyDiff, dict(block=16)),
    ("decode:knorm", reference.KNorm, {}),
    ("decode:knorm(block=16,every=4)", reference.KNorm, dict(block=16, every=4)),
    ("decode:dms(threshold=-12,window=16)", reference.Dms, dict(threshold=-12.0, window=16)),
    ("decode:cam(every=8,merge=6)", reference.Cam, dict(every=8, merge=6)),
    ("decode:cam(every=4,seed=3)", reference.Cam, dict(every=4, seed=3)),
]
# The recording as it is: a prompt of 1073 tokens, its last 64 queries and column sums of its attention.
WHOLE = [
    ("decode:streaming_llm", reference.StreamingLlm, {}),
    ("decode:h2o", reference.H2o, {}),
    ("decode:tova", reference.Tova, {}),
    ("decode:vatp", reference.Vatp, {}),
    ("decode:scissorhands(history=48)", reference.Scissorhands, dict(history=48)),
    ("decode:corm(window=32,recent=64)", reference.Corm, dict(window=32, recent=64)),
    ("decode:cake", reference.Cake, {}),
    ("decode:r_kv(every=4)", reference.RKv, dict(every=4)),
    ("decode:skipkv(every=4,repeats=0.5)", reference.SkipKv, dict(every=4, repeats=0.5)),
    ("decode:trim_kv(buffer=8,pool=model)", reference.TrimKv, dict(buffer=8, pool="model")),
    ("decode:obcache", reference.ObCache, {}),
    ("decode:keydiff", reference.KeyDiff, {}),
    ("decode:knorm", reference.KNorm, {}),
    ("decode:dms(threshold=-18)", reference.Dms, dict(threshold=-18.0)),
    ("decode:decoding(score=keydiff,every=8)", reference.Decoding, dict(score="keydiff", every=8)),
    ("decode:cam(every=8)", reference.Cam, dict(every=8)),
]
POLICIES = ["streaming_llm", "h2o", "tova", "scissorhands", "keyformer", "vatp", "corm", "cake", "r_kv", "skipkv", "trim_kv", "obcache", "caote",
            "keydiff", "knorm", "dms", "decoding", "cam"]


class Run:
    """One run of the program over a recording: all specs at all capacities."""

    def __init__(self, folder, trace, specs, budgets):
        self.specs = list(specs)
        command = [PROGRAM, "run", trace, "--no-bounds", "--budget", ",".join(map(str, budgets)), "--save", "kept", "--detail", "steps", "--metrics", "output_error,miss_rate", "--out", folder, "--quiet"]
        for spec in self.specs:
            command += ["--policy", spec]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with h5py.File(f"{folder}/results.h5") as file:
            self.canonical = [text.decode() for text in file["variants/spec"][:]]
            self.cells = {name: column[:] for name, column in file["detail/cell"].items()}
            self.detail = {name: file[f"detail/{name}"][:] for name in ("output_error", "miss_rate")}
        assert len(self.canonical) == len(self.specs)
        self.cell = {}
        if not os.path.exists(f"{folder}/kept.h5"):  # nothing but sets that may come back
            return
        self.kept = h5py.File(f"{folder}/kept.h5")
        variants, sizes = [t.decode() for t in self.kept["cells/variant"][:]], self.kept["cells/budget_tokens"][:].tolist()
        self.cell = {(v, b): i for i, (v, b) in enumerate(zip(variants, sizes))}

    def evicted_at(self, spec, budget):
        """{layer: [units, T + S]}, or None where sets may come back (mask)."""
        at = self.cell.get((self.canonical[self.specs.index(spec)], budget))
        if at is None or str(at) not in self.kept["kept"]:
            return None
        return {int(layer): node["evicted_at"][:].astype(np.int64) for layer, node in self.kept[f"kept/{at}"].items()}

    def steps(self, spec, budget, metric):
        """{(layer, KV head): [step]}."""
        rows = (self.cells["variant"] == self.specs.index(spec)) & (self.cells["budget_tokens"] == budget)
        keys = zip(self.cells["layer"][rows].tolist(), self.cells["kv_head"][rows].tolist())
        return dict(zip(keys, self.detail[metric][rows]))


@pytest.fixture(scope="module")
def tail_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tail")
    trace = recordings.tail(HARBOUR, folder / "tail.h5", [4, 12])
    return Recording(trace), Run(folder / "run", trace, [spec for spec, _, _ in TAIL], [20, 44])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run([PROGRAM, "trace", "cut", HARBOUR, "--layers", "16", "--steps", "20", "-o", folder / "cut.h5", "-q"], check=True)
    trace = recordings.with_extras(folder / "cut.h5", folder / "whole.h5")
    return Recording(trace), Run(folder / "run", trace, [spec for spec, _, _ in WHOLE], [160])


def compare(trace, run, spec, policy, capacity):
    """Replays along the program's choices; every step's evictions, error and misses must be its own."""
    times = run.evicted_at(spec, capacity)

    def follow(cache, when):
        if times is None or when < -1:  # within the prompt only the outcome of all its blocks is known
            return None
        gone = times[cache.layer][cache.unit]
        left = {int(p) for p in np.flatnonzero(gone == (IN_PROMPT if when < 0 else when))}
        return {p for p in left if p in cache.held} if when < 0 else left

    outcome = replay(trace, policy, capacity, follow)
    assert outcome.disagreements == [], f"{spec} at {capacity}: (layer, unit, step, only here, only there) {outcome.disagreements[:3]}"
    evictions = 0
    for cache in outcome.caches:
        if times is None:
            continue
        gone = times[cache.layer][cache.unit]
        expected = np.where(cache.evicted_at < 0, IN_PROMPT, cache.evicted_at)
        assert np.array_equal(gone, expected), f"{spec} at {capacity}, layer {cache.layer}, unit {cache.unit}"
        evictions += int((gone != NEVER).sum())
    assert outcome.near_ties <= 0.01 * evictions, f"{outcome.near_ties} near ties of {evictions} evictions"
    for metric, found, allowed in (("output_error", outcome.error, 2e-5), ("miss_rate", outcome.miss, 1e-6)):
        for (layer, head), steps in run.steps(spec, capacity, metric).items():
            group = slice(head * trace.group, (head + 1) * trace.group)
            expected = found[trace.layers.index(layer), group].mean(0)
            apart = np.abs(steps - expected)
            # A needed set may gain or lose a token where its mass ends within a rounding of the fraction.
            late = 0 if metric == "output_error" else 0.02 * len(steps)
            assert (apart > allowed + 1e-4 * expected).sum() <= late, f"{spec} at {capacity}: {metric} of layer {layer}, head {head}: {apart.max()}"
    return outcome, evictions


@pytest.mark.parametrize("spec,kind,parameters", TAIL, ids=[spec for spec, _, _ in TAIL])
@pytest.mark.parametrize("capacity", [20, 44])
def test_every_step_agrees_on_a_short_text(spec, kind, parameters, capacity, tail_run):
    trace, run = tail_run
    outcome, evictions = compare(trace, run, spec, kind(**parameters), capacity)
    assert evictions > 0 or kind(**parameters).masks


@pytest.mark.parametrize("spec,kind,parameters", WHOLE, ids=[spec for spec, _, _ in WHOLE])
def test_every_step_agrees_on_the_recording(spec, kind, parameters, whole_run):
    trace, run = whole_run
    compare(trace, run, spec, kind(**parameters), 160)


def test_every_policy_is_compared():
    listed = subprocess.run([PROGRAM, "list", "policies"], capture_output=True, text=True, check=True).stdout
    there = {line.split()[0] for line in listed.splitlines() if line.startswith("decode:")}
    assert there == {spec.split("(")[0] for spec, _, _ in TAIL} and there >= {f"decode:{name}" for name in POLICIES}
