"""The figures of the page simulator, from the shipped recording."""

import csv
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import support  # noqa: F401  puts the package on the path

from kvsim_analysis import pages_table
from kvsim_analysis.cli import main

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build" / "kvsim"
TRACE = ROOT / "tests" / "data" / "smollm2-harbour.h5"


def all_variants():
    """Every page policy with its default parameters, and Guard around every one that it may follow."""
    out = []
    for line in (ROOT / "policies" / "paging" / "README.md").read_text(encoding="utf-8").splitlines():
        found = re.match(r"\| `(\w+)` \| (yes|no: )", line)
        if found and found[1] != "guard":
            out.append(found[1])
            if found[2] == "yes":
                out.append(f"guard(base={found[1]})")
    return out


class Looks(unittest.TestCase):
    def test_all_policies_in_one_figure_look_different(self):
        variants = all_variants()
        self.assertGreater(len(variants), 40)
        for theme in ("light", "dark"):
            looks = pages_table.looks(variants, theme)
            self.assertEqual(len({pages_table.key(look) for look in looks.values()}), len(variants))

    def test_variants_of_one_policy_look_different(self):
        predictors = ["popu", "pleco", "history", "history(half_life=8)", "oracle"]
        variants = [f"blindoracle(predictor={p})" for p in predictors]
        variants += [f"guard(base=blindoracle(predictor={p}),seed={seed})" for p in predictors for seed in range(6)]
        looks = pages_table.looks(variants, "light")
        self.assertEqual(len({pages_table.key(look) for look in looks.values()}), len(variants))

    def test_labels_name_predictors_and_candidates_without_parameters(self):
        labels = [look.label for look in pages_table.looks(["blindoracle(predictor=popu)", "blindoracle(predictor=oracle(seed=0))",
                                                            "combine_det(first=lru,second=marker(seed=0))"], "light").values()]
        self.assertEqual(labels, ["blindoracle(popu)", "blindoracle(oracle)", "combine_det(lru, marker)"])

    def test_guard_keeps_the_colour_of_its_base_and_is_hollow_and_dashed(self):
        looks = pages_table.looks(all_variants(), "light")
        for variant, look in looks.items():
            if variant.startswith("guard") and variant != "guard(base=belady)":  # belady alone is the grey reference
                base = looks[pages_table.base_of(variant)[0]]
                self.assertEqual(look.color, base.color)
                self.assertEqual(look.marker, base.marker)
                self.assertTrue(look.hollow)
                self.assertFalse(base.hollow)
                self.assertNotEqual(look.dashes, base.dashes)


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
