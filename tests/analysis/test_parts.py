"""The parts study: hulls and division of budgets against exhaustive search, replaced parts, and the whole of it on a real program."""

import itertools
import os
import subprocess
import sys
import tempfile
import unittest

import numpy as np

import support  # noqa: F401  (puts the package on the path)
from kvsim_analysis import load, oracle_budgets, parts_study
from kvsim_analysis.errors import UserError
from kvsim_analysis.parts_variants import oracle_variants, render, parse

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KVSIM = os.environ.get("KVSIM", os.path.join(ROOT, "build", "kvsim"))
TRACE = os.path.join(ROOT, "tests", "data", "smollm2-harbour.h5")
SNAPKV = "compose(query=window(32),base=attention,reduce=[mean,avg(5),group(mean)],recent=32,unit=kv)"


class Hull(unittest.TestCase):
    def test_leaves_out_what_lies_above_a_chord_and_behind_the_least(self):
        self.assertEqual(oracle_budgets.lower_hull([1, 2, 4, 8], [10, 9, 2, 1]), [0, 2, 3])
        self.assertEqual(oracle_budgets.lower_hull([1, 2, 4, 8], [5, 2, 1, 3]), [0, 1, 2])
        self.assertEqual(oracle_budgets.lower_hull([1, 2, 4], [1, 5, 4]), [0])


class Division(unittest.TestCase):
    def test_is_the_best_there_is_for_convex_curves_on_an_even_grid(self):
        random = np.random.default_rng(5)
        tokens = np.arange(1, 7)
        for _ in range(20):
            steps = np.sort(random.random((3, 5)), 1)[:, ::-1]  # falling gains: convex
            curves = 10 - np.concatenate([np.zeros((3, 1)), np.cumsum(steps, 1)], 1)
            for total in (3, 7, 11, 18):
                places = oracle_budgets.divide(tokens, curves, total)
                self.assertLessEqual(tokens[places].sum(), total)
                best = min(
                    sum(curves[u, p] for u, p in enumerate(choice))
                    for choice in itertools.product(range(6), repeat=3)
                    if tokens[list(choice)].sum() <= total
                )
                self.assertAlmostEqual(curves[np.arange(3), places].sum(), best, places=12)

    def test_never_exceeds_the_total_and_is_never_worse_than_an_even_one(self):
        random = np.random.default_rng(6)
        tokens = np.array([4, 6, 9, 14, 20, 31])
        for _ in range(50):
            curves = np.sort(random.random((5, 6)), 1)[:, ::-1]
            mean, used = oracle_budgets.best_mean(tokens, curves, 9)
            self.assertLessEqual(used, 9)
            self.assertLessEqual(mean, curves[:, 2].mean())

    def test_gives_nothing_to_a_head_that_gains_nothing(self):
        tokens = np.array([2, 4, 8])
        places = oracle_budgets.divide(tokens, [[1, 1, 1], [9, 5, 1]], 10)
        self.assertEqual(places.tolist(), [0, 2])

    def test_refuses_totals_below_the_smallest_budget(self):
        with self.assertRaises(ValueError):
            oracle_budgets.divide([4, 8], [[1, 0], [1, 0]], 7)


class Variants(unittest.TestCase):
    def test_replace_one_part_and_keep_the_others(self):
        line = SNAPKV.replace("unit=kv", "heads=ada(alpha=0.2),unit=kv")
        found = oracle_variants(line, 64)
        self.assertEqual(found["as it is"], line)
        self.assertNotIn("ada", found["uniform"])
        self.assertEqual(found["queries"], line.replace("window(32)", "oracle(64)"))
        self.assertEqual(found["values"], line.replace("[mean,", "[mean,value(caote),"))
        self.assertEqual(found["queries and values"], "compose(score=oracle_output(unit=kv),heads=ada(alpha=0.2),recent=32)")
        self.assertEqual(found["truth, uniform"], "compose(score=oracle_output(unit=kv),recent=32)")

    def test_of_scores_without_queries_have_no_such_part(self):
        for line in ("compose(base=knorm)", "compose(score=knorm,sinks=4)", "compose(base=position,sinks=4)"):
            found = oracle_variants(line, 8)
            self.assertNotIn("queries", found)
            self.assertNotIn("values", found)
            self.assertIn("queries and values", found)

    def test_leave_out_what_is_an_oracle_already(self):
        self.assertNotIn("queries", oracle_variants("compose(query=oracle(8),reduce=[sum,group(mean)])", 8))
        self.assertNotIn("values", oracle_variants("compose(query=all,reduce=[sum,value(caote),group(mean)])", 8))

    def test_a_line_is_read_and_written_alike(self):
        line = 'compose(query=[window(8),lookahead(pass="snapkv-64",length=8)],reduce=[sum,max(7)],forced=[0,17])'
        self.assertEqual(render(parse(line)), line)

    def test_of_another_policy_are_refused(self):
        with self.assertRaises(UserError):
            oracle_variants("snapkv(window=32)", 8)


class Grid(unittest.TestCase):
    def test_holds_the_budgets_asked_for_and_the_whole_prompt(self):
        grid = parts_study.budget_grid([48, 100], 600, 12)
        self.assertTrue({48, 100, 600} <= set(grid))
        self.assertEqual(grid, sorted(set(grid)))
        self.assertLessEqual(grid[0], 6)


@unittest.skipUnless(os.path.exists(KVSIM), "needs a built kvsim (build/kvsim, or KVSIM=FILE)")
class Study(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(dir=support.ROOT)
        cls.done = subprocess.run(
            [sys.executable, os.path.join(ROOT, "analysis", "studies", "parts"), TRACE, "--policy", "snapkv(window=32)"]
            + ["--budget", "64,128", "--points", "10", "--kvsim", KVSIM, "--out", cls.folder],
            capture_output=True,
            text=True,
        )

    def test_writes_table_and_figure(self):
        self.assertEqual(self.done.returncode, 0, self.done.stderr)
        self.assertIn("queries and values", self.done.stdout)
        self.assertTrue(os.path.getsize(os.path.join(self.folder, "parts.png")) > 10000)

    def test_as_it_is_equals_the_policy_and_hindsight_does_not_lose(self):
        variants = oracle_variants(SNAPKV, 64)
        run = load(os.path.join(self.folder, "run"))
        rows = {(r[1], r[2]): r for r in parts_study.gains(run, variants, [64, 128], "output_error")}
        own = run.rows[(run.rows.budget_tokens == 128) & (run.rows.variant == run.specs[0])].output_error.mean()
        self.assertAlmostEqual(rows["as it is", 128][4], own, places=12)
        for budget in (64, 128):
            for part in ("queries", "head budgets", "layer budgets", "all budgets", "all of it"):
                self.assertGreaterEqual(rows[part, budget][5], 0.0, part)
                self.assertLessEqual(rows[part, budget][3], budget)
            self.assertGreaterEqual(rows["all budgets", budget][5], rows["head budgets", budget][5] - 0.02)

    def test_faults_are_one_line(self):
        script = os.path.join(ROOT, "analysis", "studies", "parts")
        for arguments, said in (
            ([TRACE, "--policy", "lagkv", "--out", self.folder, "--kvsim", KVSIM], "does not decompose"),
            ([TRACE, "--policy", "snapkv", "--out", self.folder, "--kvsim", "no/such"], "cannot run no/such"),
            (["no.h5", "--policy", SNAPKV, "--out", self.folder, "--kvsim", KVSIM], "no.h5"),
            ([TRACE, "--policy", SNAPKV, "--budget", "x", "--out", self.folder, "--kvsim", KVSIM], "--budget 'x'"),
        ):
            done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1)
            self.assertIn(said, done.stderr)


if __name__ == "__main__":
    unittest.main()
