"""What was evicted when: cache sizes and the token picture against plain loops over the stored eviction times."""

import os
import tempfile
import unittest

import h5py
import numpy as np

import support
import synthetic
from kvsim_analysis import load
from kvsim_analysis.holding import Holding
from kvsim_analysis.kept import IN_PROMPT, NEVER

SPECS = ["decode:h2o(recent=0.5)", "decode:streaming_llm(sinks=4)", "snapkv(window=32)"]
PROMPT, DECODE, LAYERS, HEADS, BUDGET = 90, 30, 2, 3, 24


def times(variant, layer, head):
    """Eviction times of one cache that holds BUDGET tokens after every step: sinks and a window, or a seeded choice."""
    random = np.random.default_rng([variant, layer, head])
    gone = np.full(PROMPT + DECODE, NEVER, np.uint32)
    held = list(range(PROMPT))
    while len(held) > BUDGET:
        gone[held.pop(4 if variant == 1 else int(random.integers(len(held))))] = IN_PROMPT
    for step in range(DECODE):
        held.append(PROMPT + step)
        gone[held.pop(4 if variant == 1 else int(random.integers(len(held))))] = step
    return gone


def write(texts=True):
    """A results folder with kept.h5 and, beside it, a recording with token texts."""
    folder = tempfile.mkdtemp(dir=support.ROOT)
    synthetic.write_results(folder, specs=SPECS, layers=LAYERS, kv_heads=HEADS, budgets=[BUDGET, 48], prompt=PROMPT, decode=DECODE, detail=True)
    recording = os.path.join(folder, "trace.h5")
    if texts:
        with h5py.File(recording, "w") as file:
            words = ["The", " clock", "\n", " struck", " $5", " nine", ".", "\u4e2d", " extraordinarily-long-word"]
            file.create_dataset("tokens/text", data=[words[i % len(words)] for i in range(PROMPT + DECODE)], dtype=h5py.string_dtype())
    with h5py.File(os.path.join(folder, "results.h5"), "r+") as file:
        if "traces/path" in file:
            del file["traces/path"]
        file.create_dataset("traces/path", data=[recording], dtype=h5py.string_dtype())
        name = file["traces/name"][0]
    with h5py.File(os.path.join(folder, "kept.h5"), "w") as file:
        file.attrs.update(format="kvsim-kept", version="1.0")
        text = h5py.string_dtype()
        file.create_dataset("cells/trace", data=[name] * 3, dtype=text)
        file.create_dataset("cells/variant", data=SPECS, dtype=text)
        file["cells/budget_tokens"] = [BUDGET] * 3
        for cell in range(3):
            for layer in range(LAYERS):
                node = file.create_group(f"kept/{cell}/{layer:03d}")
                node.attrs["unit"] = "kv"
                if cell == 2:
                    node["indices"] = np.tile(np.arange(BUDGET, dtype=np.uint32), HEADS)
                    node["offsets"] = (np.arange(HEADS + 1) * BUDGET).astype(np.uint64)
                    continue
                gone = np.array([times(cell, layer, head) for head in range(HEADS)])
                kept = [np.flatnonzero(g[:PROMPT] != IN_PROMPT) for g in gone]
                node["indices"] = np.concatenate(kept).astype(np.uint32)
                node["offsets"] = np.cumsum([0] + [len(k) for k in kept]).astype(np.uint64)
                node["evicted_at"] = gone
    return folder


def readable(gone, position, step):
    """Whether one cache's step could read a token, word for word."""
    if position > PROMPT + step or gone[position] == IN_PROMPT:
        return False
    return gone[position] == NEVER or gone[position] >= step


class HoldingOfACell(unittest.TestCase):
    def test_counts_every_token_at_every_step(self):
        held = Holding(load(write()), 0, BUDGET, 0)
        caches = [times(0, layer, head) for layer in range(LAYERS) for head in range(HEADS)]
        self.assertEqual(held.caches, len(caches))
        for step in range(DECODE):
            expected = [np.mean([readable(g, p, step) for g in caches]) for p in range(PROMPT + DECODE)]
            np.testing.assert_allclose(held.share[:, step], expected, atol=1e-6)
            self.assertAlmostEqual(held.size[step], BUDGET + 1)

    def test_of_one_layer_and_head_holds_one_cache(self):
        held = Holding(load(write()), 0, BUDGET, 0, layers=[1], kv_head=2)
        gone = times(0, 1, 2)
        self.assertEqual(held.caches, 1)
        np.testing.assert_array_equal(held.share[:, 7], [float(readable(gone, p, 7)) for p in range(PROMPT + DECODE)])


class CacheSizeOverSteps(unittest.TestCase):
    def test_is_drawn_beside_metrics_and_grows_for_prompt_time_policies(self):
        with support.drawn("steps", write(), "--budget", BUDGET, "--y", "cache_size", "miss_rate", "output_error", "--no-references") as figure:
            sizes = figure.axes[0]
            self.assertEqual(sizes.get_ylabel(), "cache size [tokens]")
            drawn = sorted(tuple(line.get_ydata()) for line in sizes.lines)
            self.assertEqual(drawn[0], tuple([BUDGET + 1.0] * DECODE))
            np.testing.assert_allclose(drawn[2], BUDGET + 1 + np.arange(DECODE))
            self.assertEqual(support.overlaps(figure), [])

    def test_needs_kept_sets(self):
        code, _, error = support.plot("steps", support.results("small"), "--y", "cache_size")
        self.assertEqual((code, error.count("\n")), (2, 1))
        self.assertIn("--save kept", error)


class EvictionsFigure(unittest.TestCase):
    def test_shows_the_share_of_caches_that_hold_a_token(self):
        with support.drawn("evictions", write(), "--variant", "decode:h2o", "--budget", BUDGET, "--from", "70", "--tokens", "40") as figure:
            whole, near = (ax.images[0].get_array() for ax in figure.axes[:2])
            caches = [times(0, layer, head) for layer in range(LAYERS) for head in range(HEADS)]
            self.assertEqual((whole.shape, near.shape), ((PROMPT + DECODE, DECODE), (40, DECODE)))
            self.assertAlmostEqual(float(near[15, 5]), np.mean([readable(g, 85, 5) for g in caches]), places=6)
            self.assertTrue(near.mask[PROMPT + 9 - 70, 8] and not near.mask[PROMPT + 9 - 70, 9])  # written at step 9
            labels = [t.get_text() for t in figure.axes[1].get_yticklabels()]
            self.assertEqual(labels[2:9], ["The", "clock", "\u23ce", "struck", "\\$5", "nine", "."])

    def test_chooses_a_place_where_the_caches_differ(self):
        folder = write()
        with support.drawn("evictions", folder, "--variant", "decode:h2o", "--budget", BUDGET, "--tokens", "20") as figure:
            first = int(figure.axes[1].get_ylim()[1] + 0.5)
            share = Holding(load(folder), 0, BUDGET, 0).share
            mixed = (share * (1 - share)).sum(1)
            self.assertAlmostEqual(mixed[first : first + 20].sum(), max(mixed[i : i + 20].sum() for i in range(PROMPT + DECODE - 19)), places=3)

    def test_of_a_single_cache_chooses_where_most_leave(self):
        with support.drawn("evictions", write(), "--variant", "decode:streaming_llm", "--budget", BUDGET, "--tokens", "20", "--layer", "0", "--kv-head", "1") as figure:
            gone = times(1, 0, 1)
            left = (gone < DECODE - 1).astype(int)
            first = int(figure.axes[1].get_ylim()[1] + 0.5)
            self.assertEqual(left[first : first + 20].sum(), max(left[i : i + 20].sum() for i in range(PROMPT + DECODE - 19)))

    def test_texts_never_overlap(self):
        folder = write()
        for options in ((), ("--tokens", "90"), ("--layer", "1", "--kv-head", "0", "--tokens", "8"), ("--theme", "dark")):
            with support.drawn("evictions", folder, "--budget", BUDGET, *options) as figure:
                self.assertEqual(support.overlaps(figure), [], options)

    def test_positions_stand_in_for_texts_that_are_not_there(self):
        with support.drawn("evictions", write(texts=False), "--budget", BUDGET, "--from", "3", "--tokens", "5") as figure:
            self.assertEqual([t.get_text() for t in figure.axes[1].get_yticklabels()], ["3", "4", "5", "6", "7"])

    def test_faults_are_one_line(self):
        folder = write()
        short = os.path.join(folder, "short.h5")
        with h5py.File(short, "w") as file:
            file.create_dataset("tokens/text", data=["a"], dtype=h5py.string_dtype())
        for arguments, part in (
            ((folder, "--variant", "snapkv"), "nothing tells when 'snapkv' evicted; it takes a decode-time policy"),
            ((folder, "--budget", "48"), "holds no budget 48"),
            ((folder, "--budget", BUDGET, "--from", "500"), "--from 500: the trace has 120 tokens"),
            ((folder, "--tokens", "0"), "--tokens 0: 1 to 90"),
            ((folder, "--kv-head", "9"), "no KV head 9 here; there are 0 to 2"),
            ((folder, "--budget", BUDGET, "--recording", short), "has 1 tokens, the run's trace has 120"),
            ((support.results("one"),), "no kept.h5 in"),
        ):
            code, _, error = support.plot("evictions", *arguments)
            self.assertEqual((code, error.count("\n")), (2, 1), error)
            self.assertIn(part, error)
