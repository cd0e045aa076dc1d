"""The figures of the page simulator, from the shipped recording."""

import csv
import subprocess
import tempfile
import unittest
from pathlib import Path

import support  # noqa: F401  puts the package on the path

from kvsim_analysis.cli import main

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "kvsim"
TRACE = ROOT / "tests" / "data" / "smollm2-harbour.h5"


@unittest.skipUnless(PROGRAM.exists(), "build/kvsim is not built")
class Pages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = Path(cls.folder.name)
        cls.out = cls.path / "pages"
        policies = ["lru", "guard(blindoracle(oracle(noise=lognormal({0.5,2,4}))))", "blindoracle(oracle(noise=lognormal({0.5,2,4})))"]
        command = [PROGRAM, "pages", TRACE, "--layers", "4,20", "--capacity", "8,16,32", "--detail", "phases", "--quiet", "--out", cls.out]
        for policy in policies:
            command += ["--policy", policy]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_rows_hold_every_stream_variant_and_capacity(self):
        with open(self.out / "results.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 2 * 3 * 8 * 3)  # layers, KV heads, variants with belady, capacities
        for row in rows:
            self.assertLessEqual(int(row["misses"]), int(row["requests"]))
            if row["policy"] == "belady":
                self.assertEqual(float(row["cost_ratio"]), 1.0)

    def test_every_figure_is_drawn(self):
        for command in ("mrc", "noise", "phases"):
            target = self.path / f"{command}.png"
            self.assertEqual(main([command, str(self.out), "--output", str(target)]), 0)
            self.assertGreater(target.stat().st_size, 10_000)


if __name__ == "__main__":
    unittest.main()
