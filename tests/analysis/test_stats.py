"""The figure of a recording's statistics: the numbers of the table, no text on text, faults in one line."""

import csv
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np

import support

from kvsim_analysis.commands.stats import Statistics

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "kvsim"
TRACE = ROOT / "tests" / "data" / "smollm2-harbour.h5"
NAMES = ["query_similarity", "top_overlap", "top_overlap_chance", "persistence", "persistence_window", "important_share", "sink_mass", "recent_mass"]


def value(statistic, layer, head, parameter):
    return round(0.9 - 0.02 * layer - 0.01 * head - 0.001 * parameter - 0.05 * NAMES.index(statistic), 6)


def write(folder, traces=1, layers=(0, 3, 7), heads=4, lags=(1, 2, 4, 8), undefined=()):
    """A stats.h5 as `kvsim trace stats` writes it, with values that say where they stand."""
    columns = {n: [] for n in ("trace", "layer", "kv_head", "query_head", "statistic", "parameter", "mean", "count")}
    for trace in range(traces):
        for layer in layers:
            for head in range(heads):
                for statistic in NAMES:
                    parameters = [0] if statistic == "important_share" else [1, 4, 16] if "mass" in statistic else lags
                    for parameter in parameters:
                        hole = statistic in undefined
                        row = (trace, layer, head // 2, head, NAMES.index(statistic), parameter, np.nan if hole else value(statistic, layer, head, parameter), 0 if hole else 9)
                        for name, cell in zip(columns, row):
                            columns[name].append(cell)
    with h5py.File(os.path.join(folder, "stats.h5"), "w") as file:
        file.attrs.update(format="kvsim-stats", version="1.0", top=64)
        text = h5py.string_dtype()
        file.create_dataset("traces/name", data=[f"run/t{i}.h5" for i in range(traces)], dtype=text)
        file.create_dataset("traces/model", data=["tiny"] * traces, dtype=text)
        file["traces/prompt_len"], file["traces/decode_len"] = [100] * traces, [40] * traces
        file.create_dataset("statistics/name", data=NAMES, dtype=text)
        for name, values in columns.items():
            file[f"rows/{name}"] = np.array(values)
    return folder


class StatsFigure(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=support.ROOT)

    def test_draws_the_means_over_heads_and_layers(self):
        with support.drawn("stats", write(self.folder)) as figure:
            similarity = figure.axes[0]
            bold = next(line for line in similarity.lines if line.get_marker() == "o")
            expected = [np.mean([value("query_similarity", l, h, k) for l in (0, 3, 7) for h in range(4)]) for k in (1, 2, 4, 8)]
            np.testing.assert_allclose(bold.get_ydata(), expected, atol=1e-9)
            np.testing.assert_array_equal(bold.get_xdata(), [1, 2, 4, 8])
            self.assertEqual(len(similarity.lines), 3 + 1)
            chance = next(line for line in figure.axes[2].lines if line.get_linestyle() == "--")
            np.testing.assert_allclose(chance.get_ydata(), np.mean([value("important_share", l, h, 0) for l in (0, 3, 7) for h in range(4)]))

    def test_maps_show_every_query_head_at_the_chosen_distance(self):
        with support.drawn("stats", write(self.folder), "--lag", "8", "--tokens", "16") as figure:
            window, sinks = (ax.images[0].get_array() for ax in figure.axes[4:6])
            self.assertEqual(window.shape, (3, 4))
            self.assertAlmostEqual(float(window[2, 3]), value("persistence_window", 7, 3, 8))
            self.assertAlmostEqual(float(sinks[1, 2]), value("sink_mass", 3, 2, 16))

    def test_texts_never_overlap(self):
        for options in ({}, {"layers": range(30), "heads": 9, "lags": (1, 2, 4, 8, 16, 32, 64, 128, 256)}, {"layers": (5,), "heads": 1, "lags": (1,)}):
            for theme in ("light", "dark"):
                with support.drawn("stats", write(self.folder, **options), "--theme", theme) as figure:
                    self.assertEqual(support.overlaps(figure), [], options)

    def test_what_is_undefined_is_said(self):
        with support.drawn("stats", write(self.folder, undefined=("top_overlap", "top_overlap_chance"))) as figure:
            self.assertTrue(any("undefined" in t.get_text() for t in figure.axes[1].texts))

    def test_faults_are_one_line(self):
        for arguments, part in (
            ((self.folder,), "no stats.h5 in"),
            ((write(tempfile.mkdtemp(dir=support.ROOT)), "--lag", "3"), "no --lag 3 in these statistics; there are: 1, 2, 4, 8"),
            ((write(tempfile.mkdtemp(dir=support.ROOT), traces=2),), "several traces; name one with --trace"),
            ((write(tempfile.mkdtemp(dir=support.ROOT), lags=()),), "too few decode steps"),
        ):
            code, _, error = support.plot("stats", *arguments)
            self.assertEqual(code, 2)
            self.assertIn(part, error)
            self.assertEqual(error.count("\n"), 1)


@unittest.skipUnless(PROGRAM.is_file() and TRACE.is_file(), "kvsim is not built")
class StatsOfARecording(unittest.TestCase):
    def test_table_figure_and_file_hold_the_same_numbers(self):
        folder = tempfile.mkdtemp(dir=support.ROOT)
        done = subprocess.run([PROGRAM, "trace", "stats", TRACE, "--lags", "1,8", "--out", folder, "-q"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        source = Statistics(folder)
        with open(os.path.join(folder, "stats.csv"), newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 8 * 9 * (5 * 2 + 1 + 2 * 4))
        for row in rows:
            layer = list(source.layers).index(int(row["layer"]))
            self.assertEqual(source.map(row["statistic"], int(row["parameter"]))[layer, int(row["query_head"])], float(row["mean"]))

    def test_similarity_and_sinks_equal_numpy_on_the_recording(self):
        folder = tempfile.mkdtemp(dir=support.ROOT)
        subprocess.run([PROGRAM, "trace", "stats", TRACE, "--lags", "1,8", "--out", folder, "-q"], check=True)
        source = Statistics(folder)
        with h5py.File(TRACE) as file:
            steps, scale = int(file.attrs["decode_len"]), float(file.attrs["softmax_scale"])
            for at, layer in enumerate(source.layers):
                group = file[f"layers/{layer:03d}"]
                query, key = group["query"][:, -steps:].astype(float), group["key"][:].astype(float)
                for head in range(9):
                    unit = query[head] / np.linalg.norm(query[head], axis=1, keepdims=True)
                    self.assertAlmostEqual(source.map("query_similarity", 8)[at, head], (unit[8:] * unit[:-8]).sum(1).mean(), places=6)
                    logits = scale * query[head] @ key[head // 3].T
                    logits[np.arange(key.shape[1])[None, :] > (key.shape[1] - steps + np.arange(steps))[:, None]] = -np.inf
                    weight = np.exp(logits - logits.max(1, keepdims=True))
                    weight /= weight.sum(1, keepdims=True)
                    self.assertAlmostEqual(source.map("sink_mass", 4)[at, head], weight[:, :4].sum(1).mean(), places=5)
