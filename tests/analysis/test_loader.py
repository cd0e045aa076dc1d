"""The loader: frames with names, kept sets, per-step values, and one clear line for whatever is not readable."""

import os
import subprocess
import sys
import unittest

import h5py
import numpy as np

import support
import synthetic
from kvsim_analysis import UserError, load
from kvsim_analysis.pool import Pool, open_all

try:
    import pandas
except ImportError:
    pandas = None


@unittest.skipIf(pandas is None, "pandas is not installed; frames need it")
class Frames(unittest.TestCase):
    def test_rows_have_names_for_ids_and_the_columns_of_the_csv(self):
        run = load(support.results("standard"))
        rows = run.rows
        self.assertEqual(
            list(rows.columns),
            [
                "trace",
                "policy",
                "variant",
                "layer",
                "kv_head",
                "budget_request",
                "budget_tokens",
                "resident_tokens",
                "peak_tokens",
                "evicted",
                "clamped",
                "near_ties",
            ]
            + [m[0] for m in synthetic.METRICS],
        )
        self.assertEqual(set(rows["policy"]), {synthetic.policy_of(s) for s in run.specs})
        self.assertTrue((rows["variant"].astype(str).str.split("(").str[0] == rows["policy"].astype(str)).all())
        self.assertEqual(len(rows), 8 * 3 * 20 * 12)
        self.assertTrue((rows["budget_request"].astype(str).astype(int) == rows["budget_tokens"]).all())

    def test_values_are_those_of_the_file(self):
        run = load(support.results("standard"))
        with h5py.File(run.path) as file:
            np.testing.assert_array_equal(run.rows["output_error"], file["rows/output_error"][:])
            np.testing.assert_array_equal(run.layers["projected_error"], file["layer_rows/projected_error"][:])

    def test_other_tables(self):
        run = load(support.results("standard"))
        self.assertEqual(list(run.traces["name"]), ["essay"])
        self.assertEqual(list(run.variants["spec"]), synthetic.POLICIES + synthetic.REFERENCES)
        self.assertEqual(run.variants["automatic"].sum(), 4)
        self.assertIn("miss_rate", list(run.metrics["name"]))
        self.assertEqual(len(run.failures), 0)
        self.assertIn("output_error_p95", run.summary.columns)
        mean = run.rows[run.rows.policy == "h2o"].groupby("budget_tokens")["miss_rate"].mean()
        summary = run.summary[run.summary.policy == "h2o"].set_index("budget_tokens")["miss_rate_mean"]
        np.testing.assert_allclose(mean, summary)

    def test_detail_is_indexed_by_cell_with_a_column_per_step(self):
        run = load(support.results("standard"))
        detail = run.detail("miss_rate")
        self.assertEqual(detail.shape, (8 * 3 * 20 * 12, 48))
        one = detail.loc["essay", "h2o", 2, 1, 128]
        cells, values = run.detail_arrays("miss_rate")
        at = np.flatnonzero(
            (cells["variant"] == list(run.specs).index("h2o"))
            & (cells["layer"] == 2)
            & (cells["kv_head"] == 1)
            & (cells["budget_tokens"] == 128)
        )
        np.testing.assert_array_equal(np.ravel(one), values[at[0]])


class Kept(unittest.TestCase):
    def test_positions_per_unit(self):
        kept = load(support.results("standard")).kept(synthetic.POLICIES[0], 64, layer=3)
        self.assertEqual(kept.unit, "kv")
        self.assertEqual([list(p) for p in kept.positions], [list(range(64))] * 3)
        self.assertEqual(kept.mask(100).sum(), 3 * 64)

    def test_what_was_not_saved_is_explained(self):
        run = load(support.results("standard"))
        for arguments, part in (
            ((synthetic.POLICIES[0], 65, 0), "there are: 32, 64"),
            (("h2oo", 64, 0), "did you mean 'h2o'"),
            ((synthetic.POLICIES[0], 64, 99), "no layer '99'"),
            (("full", 64, 0), "change from step to step"),
        ):
            with self.assertRaisesRegex(UserError, part.replace("(", "\\(")):
                run.kept(*arguments)
        with self.assertRaisesRegex(UserError, "--save kept"):
            load(support.results("one")).kept("full", 64, 0)


class Load(unittest.TestCase):
    def refused(self, path, part):
        with self.assertRaisesRegex(UserError, part) as caught:
            load(path)
        self.assertNotIn("\n", str(caught.exception))

    def test_missing_folder_and_missing_results(self):
        self.refused(os.path.join(support.ROOT, "nowhere"), "no such folder")
        empty = os.path.join(support.ROOT, "empty")
        os.makedirs(empty, exist_ok=True)
        self.refused(empty, "no results.h5 .* kvsim run")
        os.makedirs(os.path.join(support.ROOT, "unmerged", "parts"), exist_ok=True)
        self.refused(os.path.join(support.ROOT, "unmerged"), "kvsim merge")

    def test_foreign_and_damaged_files(self):
        folder = support.fresh("bad")
        path = os.path.join(folder, "results.h5")
        with h5py.File(path, "a") as file:
            file.attrs["format"] = "kvsim-trace"
        self.refused(folder, "not a kvsim-results file")
        with h5py.File(path, "a") as file:
            file.attrs.update({"format": "kvsim-results", "version": "2.0"})
        self.refused(folder, "version 2.0")
        with h5py.File(path, "a") as file:
            file.attrs["version"] = "1.7"
            del file["budgets"]
        self.refused(folder, "lacks the dataset /budgets/text")
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        self.refused(folder, "truncated")
        with open(path, "wb") as file:
            file.write(b"trace,policy\n")
        self.refused(folder, "not an HDF5 file")

    def test_unknown_column_offers_the_nearest(self):
        with self.assertRaisesRegex(UserError, "did you mean 'miss_rate'"):
            load(support.results("one")).column("rows", "mis_rate")

    def test_the_file_itself_may_be_named(self):
        self.assertEqual(load(os.path.join(support.results("one"), "results.h5")).folder, support.results("one"))

    def test_a_file_that_is_being_written_is_refused(self):
        folder = support.fresh("busy")
        hold = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", hold, os.path.join(folder, "results.h5")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            self.assertEqual(writer.stdout.readline(), "open\n")
            self.refused(folder, "open for writing")
            writer.stdin.close()
        self.assertEqual(len(load(folder).trace_names), 1)


class JoinedFolders(unittest.TestCase):
    def test_traces_and_variants_add_up_and_shared_cells_count_once(self):
        first = support.fresh("first", specs=synthetic.POLICIES[:2], names=["a", "b"])
        second = support.fresh("second", specs=synthetic.POLICIES[3:5], names=["c"])
        pool = open_all([first, second, first])
        self.assertIsInstance(pool, Pool)
        self.assertEqual(list(pool.trace_names), ["a", "b", "c"])
        self.assertEqual(len(pool.specs), 2 + 2 + 4)
        alone = [load(f) for f in (first, second)]
        self.assertEqual(
            len(pool.column("summary", "variant")), sum(len(r.column("summary", "variant")) for r in alone)
        )
        self.assertAlmostEqual(
            np.nansum(pool.column("rows", "miss_rate")), sum(np.nansum(r.column("rows", "miss_rate")) for r in alone)
        )

    def test_folders_that_disagree_are_sent_to_compare(self):
        first, second = support.fresh("before"), support.fresh("after", skill_shift=0.1)
        with self.assertRaisesRegex(UserError, "kvsim-plot compare"):
            open_all([first, second])


if __name__ == "__main__":
    unittest.main()
