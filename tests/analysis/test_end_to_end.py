"""From the shipped recording to tables and figures, as a user of Python goes: kvsim run, load, external scores, plot."""

import subprocess
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np

import support  # noqa: F401  puts the package on the path

from kvsim_analysis import load
from kvsim_analysis.cli import main

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "kvsim"
TRACE = ROOT / "tests" / "data" / "smollm2-harbour.h5"


def run(*arguments, expect=0):
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == expect, done.stderr
    return done


@unittest.skipUnless(PROGRAM.exists(), "build/kvsim is not built")
class EndToEnd(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = Path(cls.folder.name)
        # The scores of a new idea, here minus the key norm, made in Python alone.
        with h5py.File(TRACE) as trace, h5py.File(cls.path / "scores.h5", "w") as out:
            prompt = int(trace.attrs["prompt_len"])
            layers = sorted(trace["layers"])
            keys = np.stack([trace[f"layers/{layer}/key"][:, :prompt].astype(np.float64) for layer in layers])
            out["mine"] = -np.sqrt((keys**2).sum(-1)).astype(np.float32)
            out["short"] = np.zeros((len(layers), keys.shape[1], prompt - 1), np.float32)
        cls.out = cls.path / "run"
        run("run", TRACE, "--policy", f'external(file="{cls.path}/scores.h5",dataset="/mine")', "--policy", "knorm",
            "--policy", "snapkv(window={16,32})", "--budget", "32..512*2,100%", "--out", cls.out, "--save", "kept",
            "--detail", "steps", "--quiet")
        cls.results = load(cls.out)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_scores_made_in_python_rank_like_the_policy_they_copy(self):
        rows = self.results.rows
        mine = rows[rows.policy == "external"].reset_index(drop=True)
        knorm = rows[rows.policy == "knorm"].reset_index(drop=True)
        self.assertEqual(len(mine), 8 * 3 * 6)
        # A norm that Python rounds the other way may swap two neighbours; nearly all cells agree to the last bit.
        same = (mine.output_error == knorm.output_error).mean()
        self.assertGreater(same, 0.95)
        self.assertLess((mine.set_consistency - knorm.set_consistency).abs().max(), 0.05)

    def test_scores_of_another_shape_are_refused_in_one_line(self):
        done = run("run", TRACE, "--policy", f'external(file="{self.path}/scores.h5",dataset="/short")', "--budget", 32,
                   "--no-bounds", "--out", self.path / "refused", expect=2)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn("1072", done.stderr)

    def test_tables_hold_every_cell_once(self):
        rows = self.results.rows
        keys = ["trace", "variant", "layer", "kv_head", "budget_tokens"]
        self.assertFalse(rows.duplicated(keys).any())
        self.assertEqual(len(rows), 8 * 3 * 8 * 6)
        full = rows[rows.policy == "full"]
        self.assertLess(full.output_error.max(), 1e-6)
        self.assertTrue((full.set_consistency == 1).all())
        self.assertTrue((full.miss_rate == 0).all())

    def test_csv_and_hdf5_hold_the_same_numbers(self):
        import pandas

        csv = pandas.read_csv(self.out / "results.csv")
        rows = self.results.rows
        self.assertEqual(list(csv.columns), list(rows.columns))
        for column in ("output_error", "resident_tokens", "window_consistency"):
            np.testing.assert_array_equal(csv[column].to_numpy(), rows[column].to_numpy())

    def test_kept_sets_have_the_size_of_the_budget(self):
        label = self.results.rows[self.results.rows.policy == "knorm"].variant.iloc[0]
        kept = self.results.kept(label, 64, 12)
        self.assertEqual([len(unit) for unit in kept.positions], [64, 64, 64])

    def test_every_figure_is_drawn(self):
        for command, *options in (["curve"], ["pareto"], ["heatmap"], ["steps"], ["compare", "--variant", "knorm",
                                  "--variant", "snapkv(window=16)"]):
            target = self.path / f"{command}.png"
            self.assertEqual(main([command, str(self.out), *options, "--output", str(target)]), 0)
            self.assertGreater(target.stat().st_size, 20_000)


if __name__ == "__main__":
    unittest.main()
