"""Fidelity: rank correlations worked out by hand, matching of judged cells, damaged closed.h5, tables, figure, and the study's steps."""

import concurrent.futures
import csv
import os
import stat
import subprocess
import sys
import tempfile
import unittest

import h5py
import numpy as np

import support
import synthetic
from kvsim_analysis import closed, fidelity, fidelity_prompts, fidelity_study, pool
from kvsim_analysis.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KVSIM = os.environ.get("KVSIM", os.path.join(ROOT, "build", "kvsim"))
DATA = os.path.join(ROOT, "..", "shared", "data")
RECORDER = os.path.join(ROOT, ".venv", "bin")
SPECS = ["streaming_llm(sinks=4)", "h2o", "tova", "knorm", "keydiff"]
# What the tests write as output_error and as true KL of SPECS, one budget. Ranks differ by one swap: 1 - 6 * 2 / (5 * 24) = 0.9.
ERROR = [1.0, 2.0, 3.0, 4.0, 5.0]
SWAPPED, FALLING = [1.0, 2.0, 3.0, 5.0, 4.0], [0.5, 0.4, 0.3, 0.2, 0.1]


def write_closed(path, cells, digests, steps=3):
    """`cells`: (trace, spec, tokens, KL); the KL stands at the mean of the steps, NaN beyond them."""
    text = h5py.string_dtype("utf-8")
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "kvsim-closed", "version": "1.0", "model": "m"})
        for i, name in enumerate(("trace", "variant")):
            file.create_dataset(f"cells/{name}", data=[c[i] for c in cells], dtype=text)
        file["cells/budget_tokens"] = np.array([c[2] for c in cells], np.int64)
        spread = np.array([[0.5, 1.0, 1.5, np.nan]] * len(cells))[:, : steps + 1]
        file["steps/kl"] = spread * np.array([[c[3]] for c in cells])
        file["steps/top1_agree"] = np.array([[1, 1, 0, 255]] * len(cells), np.uint8)
        file["steps/log_likelihood"] = np.full((len(cells), 4), -1.0)
        for trace, digest in digests.items():
            file.create_group(f"full/{trace}").attrs["digest"] = digest


def set_means(folder, metric, values):
    """Overwrites a metric's means in /summary; `values` [trace][spec], all budgets alike."""
    with h5py.File(os.path.join(folder, "results.h5"), "r+") as file:
        summary = file["summary"]
        traces, variants, column = summary["trace"][:], summary["variant"][:], summary[f"{metric}_mean"][:]
        for trace, row in enumerate(values):
            for variant, value in enumerate(row):
                column[(traces == trace) & (variants == variant)] = value
        summary[f"{metric}_mean"][:] = column


def judged_run(kls, references=False, budgets=("128",)):
    """A run of SPECS on as many traces as `kls` has lines, judged; output_error is ERROR on every trace."""
    folder = synthetic.write_results(
        os.path.join(tempfile.mkdtemp(dir=support.ROOT), "run"),
        specs=SPECS,
        references=references,
        layers=2,
        budgets=budgets,
        traces=len(kls),
    )
    set_means(folder, "output_error", [ERROR] * len(kls))
    names = ["essay"] if len(kls) == 1 else [f"essay{i}" for i in range(len(kls))]
    cells = [(n, s, int(b), k) for n, row in zip(names, kls) for s, k in zip(SPECS, row) for b in budgets]
    write_closed(os.path.join(folder, "closed.h5"), cells, {n: f"d-{n}" for n in names})
    return folder


def gathered(folder, predictors=("output_error",), **options):
    return fidelity.gather(pool.open_all([folder]), [folder], predictors=predictors, **options)


class Spearman(unittest.TestCase):
    def test_is_that_of_the_textbook(self):
        self.assertAlmostEqual(fidelity.spearman(ERROR, SWAPPED), 0.9, places=15)
        self.assertAlmostEqual(fidelity.spearman(ERROR, FALLING), -1.0, places=15)
        self.assertAlmostEqual(fidelity.spearman(np.exp(ERROR), ERROR), 1.0, places=15)

    def test_gives_ties_their_mean_rank(self):
        self.assertEqual(fidelity.ranks([10, 20, 20, 30, 5]).tolist(), [2, 3.5, 3.5, 5, 1])
        # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
        self.assertAlmostEqual(fidelity.spearman([1, 2, 2, 3], [1, 2, 3, 4]), 4.5 / np.sqrt(22.5), places=15)

    def test_leaves_undefined_places_out_and_is_undefined_for_too_few_or_constant_values(self):
        self.assertAlmostEqual(fidelity.spearman([1, np.nan, 2, 3, 4], [1, 9, 2, 4, 3]), 0.8, places=15)
        self.assertTrue(np.isnan(fidelity.spearman([1, 2, np.nan], [1, 2, 3])))
        self.assertTrue(np.isnan(fidelity.spearman([1, 1, 1, 1], [1, 2, 3, 4])))


class Gathering(unittest.TestCase):
    def test_pairs_means_over_steps_with_the_summary(self):
        found = gathered(judged_run([SWAPPED]))
        np.testing.assert_allclose(found.kl, [SWAPPED], rtol=1e-15)  # steps 0.5, 1, 1.5 of it
        self.assertEqual(found.predictors["output_error"].tolist(), [ERROR])
        self.assertEqual(found.points, [(i, "128") for i in range(5)])
        self.assertEqual(found.unmatched, 0)

    def test_knows_a_renamed_trace_by_its_digest(self):
        folder = judged_run([SWAPPED])
        write_closed(
            os.path.join(folder, "closed.h5"),
            [("other", s, 128, k) for s, k in zip(SPECS, SWAPPED)],
            {"other": "d-essay"},
        )
        np.testing.assert_allclose(gathered(folder).kl, [SWAPPED], rtol=1e-15)

    def test_refuses_another_recording_of_the_same_name(self):
        folder = judged_run([SWAPPED])
        write_closed(os.path.join(folder, "closed.h5"), [("essay", s, 128, 1.0) for s in SPECS], {"essay": "d-else"})
        with self.assertRaisesRegex(UserError, "another recording of essay"):
            gathered(folder)

    def test_counts_judged_cells_that_the_results_lack(self):
        folder = judged_run([SWAPPED])
        cells = [("essay", s, 128, k) for s, k in zip(SPECS, SWAPPED)] + [
            ("essay", "snapkv", 128, 1.0),
            ("essay", "h2o", 127, 1.0),
            ("gone", "h2o", 128, 1.0),
        ]
        write_closed(os.path.join(folder, "closed.h5"), cells, {})
        found = gathered(folder)
        self.assertEqual(found.unmatched, 3)
        self.assertEqual(len(found.points), 5)

    def test_leaves_out_cells_that_evicted_nothing_and_full(self):
        folder = judged_run([SWAPPED], references=True, budgets=("128", "2048"))
        cells = [("essay", s, b, k) for s, k in zip(SPECS, SWAPPED) for b in (128, 2048)] + [
            ("essay", "full", 128, 0.0),
            ("essay", "random(seed=0)", 128, 9.0),
        ]
        write_closed(os.path.join(folder, "closed.h5"), cells, {})
        self.assertEqual(len(gathered(folder).points), 6)
        self.assertEqual(len(gathered(folder, references=False).points), 5)

    def test_says_what_to_do_where_nothing_was_judged(self):
        folder = judged_run([SWAPPED])
        write_closed(os.path.join(folder, "closed.h5"), [("gone", "h2o", 128, 1.0)], {})
        with self.assertRaisesRegex(UserError, "judge this run again"):
            gathered(folder)
        os.remove(os.path.join(folder, "closed.h5"))
        with self.assertRaisesRegex(UserError, "no closed.h5 in .*kvsim-judge"):
            gathered(folder)

    def test_leaves_out_predictors_that_are_undefined_everywhere(self):
        folder = judged_run([SWAPPED])
        set_means(folder, "miss_rate", [[np.nan] * 5])
        self.assertEqual(list(gathered(folder, predictors=("miss_rate", "output_error")).predictors), ["output_error"])
        with self.assertRaisesRegex(UserError, "miss_rate: undefined in every judged cell .*--sensitivity 8"):
            gathered(folder, predictors=("miss_rate",))

    def test_correlates_the_cells_that_are_defined(self):
        folder = judged_run([SWAPPED])
        set_means(folder, "output_error", [[1.0, 2.0, np.nan, 4.0, 5.0]])
        found = fidelity.correlation(gathered(folder), "output_error")
        self.assertAlmostEqual(found.mean, 0.8, places=15)  # 1, 2, 3, 4 against 1, 2, 4, 3
        self.assertEqual(found.points, 4)


class Correlating(unittest.TestCase):
    def test_takes_each_prompt_by_itself_and_the_means_over_them(self):
        found = fidelity.correlation(gathered(judged_run([SWAPPED, FALLING])), "output_error")
        self.assertAlmostEqual(found.per_trace[0], 0.9, places=14)
        self.assertAlmostEqual(found.per_trace[1], -1.0, places=14)
        self.assertAlmostEqual(found.mean, 0.9, places=14)  # means 0.75, 1.2, 1.65, 2.6, 2.05

    def test_resamples_prompts(self):
        # Of two prompts a resample is either one twice, or both: 0.9, 0.9, -1, of which each end is met more often than 2.5%.
        found = fidelity.correlation(gathered(judged_run([SWAPPED, FALLING])), "output_error", seed=3)
        self.assertAlmostEqual(found.low, -1.0, places=14)
        self.assertAlmostEqual(found.high, 0.9, places=14)

    def test_turns_the_sign_where_more_is_better(self):
        folder = judged_run([SWAPPED])
        set_means(folder, "attention_recall", [[0.9, 0.8, 0.7, 0.6, 0.5]])
        found = fidelity.correlation(gathered(folder, predictors=("attention_recall",)), "attention_recall")
        self.assertAlmostEqual(found.mean, 0.9, places=14)

    def test_of_one_prompt_resamples_cells_and_depends_on_the_seed_alone(self):
        found = gathered(judged_run([SWAPPED]))
        one, again, other = (fidelity.correlation(found, "output_error", seed) for seed in (0, 0, 1))
        self.assertEqual(one, again)
        self.assertLess(one.low, 0.9)
        self.assertLessEqual(one.high, 1.0)
        self.assertEqual(other.mean, one.mean)


class Screening(unittest.TestCase):
    def test_names_the_truly_best_that_a_predictor_misses(self):
        folder = judged_run([[5.0, 4.0, 3.0, 1.0, 2.0]])  # knorm and keydiff are best, output_error says they are worst
        (found,) = fidelity.screens(gathered(folder), 2)
        self.assertEqual((found.budget, found.variants, found.best), ("128", 5, 2))
        self.assertEqual(found.missed, (3, 4))
        self.assertEqual(found.missed_double, (4,))  # knorm is the fourth by output_error
        (quarter,) = fidelity.screens(gathered(folder), None)
        self.assertEqual(quarter.best, 2)  # a quarter of five, rounded up

    def test_does_not_choose_from_references(self):
        folder = judged_run([SWAPPED])
        (found,) = fidelity.screens(gathered(folder), 1, {0, 1})
        self.assertEqual((found.variants, found.best, found.missed), (3, 1, ()))

    def test_asks_for_half_of_the_variants_at_most(self):
        (found,) = fidelity.screens(gathered(judged_run([SWAPPED])), 5)
        self.assertEqual((found.variants, found.best), (5, 2))


class Damaged(unittest.TestCase):
    def setUp(self):
        self.folder = judged_run([SWAPPED])
        self.path = os.path.join(self.folder, "closed.h5")

    def refused(self, said):
        code, out, err = support.plot("fidelity", self.folder)
        self.assertEqual((code, out), (2, ""))
        self.assertEqual(len(err.strip().splitlines()), 1, err)
        self.assertIn(said, err)

    def change(self, name, values):
        with h5py.File(self.path, "r+") as file:
            del file[name]
            if values is not None:
                file[name] = values

    def test_files_are_refused_in_one_line(self):
        for name, values, said in (
            ("steps/kl", None, "lacks the dataset /steps/kl"),
            ("steps/kl", np.zeros(5), "not [5 cells, steps]"),
            ("steps/kl", np.zeros((4, 4)), "not [5 cells, steps]"),
            ("steps/kl", np.full((5, 4), -1.0), "no divergence"),
            ("steps/kl", np.full((5, 4), np.inf), "no divergence"),
            ("steps/top1_agree", np.zeros((5, 3), np.uint8), "differ in shape"),
            ("steps/top1_agree", np.full((5, 4), 7, np.uint8), "something else than 0, 1 and 255"),
            ("cells/budget_tokens", np.array([128] * 4), "differ in length"),
            ("cells/variant", np.array([b"h2o"] * 5), "stands there twice"),
        ):
            with self.subTest(name=name, said=said):
                self.setUp()
                self.change(name, values)
                self.refused(said)

    def test_foreign_and_truncated_files_are_refused_in_one_line(self):
        with h5py.File(self.path, "r+") as file:
            file.attrs["format"] = "kvsim-kept"
        self.refused("is not a kvsim-closed file")
        with open(self.path, "r+b") as file:
            file.truncate(1500)
        self.refused("truncated")
        self.assertEqual(support.plot("fidelity", self.folder, "--closed", "no.h5")[0], 2)

    def test_steps_beyond_the_end_do_not_count(self):
        cell = closed.read(self.path)[0]
        self.assertAlmostEqual(cell.kl, 1.0, places=15)
        self.assertAlmostEqual(cell.top1_agreement, 2 / 3, places=15)


class Command(unittest.TestCase):
    def test_prints_and_writes_the_tables(self):
        folder = judged_run([SWAPPED, FALLING])
        code, out, err = support.plot("fidelity", folder, "--y", "output_error", "--best", "2")
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"output_error +0\.90 +-1\.00 +0\.90 +-1\.00 to 0\.90")
        self.assertIn("bootstrap over prompts", out)
        self.assertRegex(out, r"output_error +2 of 2 +2 of 2 +- +-")
        self.assertTrue(out.rstrip().endswith("fidelity.png"))
        with open(os.path.join(folder, "fidelity.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([r["prompt"] for r in rows], ["essay0", "essay1", "mean over prompts"])
        np.testing.assert_allclose([float(r["spearman"]) for r in rows], [0.9, -1.0, 0.9], atol=1e-14)
        self.assertEqual([r["cells"] for r in rows], ["5", "5", "5"])
        self.assertTrue(os.path.exists(os.path.join(folder, "fidelity-missed.csv")))

    def test_refuses_names_whose_table_would_replace_one_of_the_folder(self):
        folder = judged_run([SWAPPED])
        for name in ("closed.png", "results.pdf", "summary.svg", "layers.png"):
            table = os.path.join(folder, name.split(".")[0] + ".csv")
            with open(table, "w") as file:
                file.write("precious")
            code, out, err = support.plot("fidelity", folder, "--y", "output_error", "-o", os.path.join(folder, name))
            self.assertEqual((code, out, len(err.strip().splitlines())), (2, "", 1), err)
            self.assertIn("would replace " + os.path.basename(table), err)
            with open(table) as file:
                self.assertEqual(file.read(), "precious")

    def test_says_that_one_prompt_is_resampled_over_cells(self):
        code, out, _ = support.plot("fidelity", judged_run([SWAPPED]), "--y", "output_error")
        self.assertEqual(code, 0)
        self.assertIn("over (policy, budget) cells, as there is one prompt", out)

    def test_draws_a_panel_per_predictor_without_overlaps(self):
        folder = judged_run([SWAPPED, FALLING], references=True, budgets=("128", "256"))
        with support.drawn("fidelity", folder) as figure:
            self.assertEqual(len(figure.axes), 4)  # output_error, attention_recall, set_consistency, miss_rate
            self.assertEqual(support.overlaps(figure), [])
            self.assertEqual([ax.get_xscale() for ax in figure.axes], ["log"] * 4)
            points = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
            self.assertEqual(len(points), 10)
            said = [text for text, _ in support.texts(figure)]
            self.assertTrue(any("prompts -1.00 to 0.90" in text for text in said), said)

    def test_draws_one_prompt_and_the_dark_theme(self):
        folder = judged_run([SWAPPED, FALLING])
        with support.drawn("fidelity", folder, "--y", "output_error", "--trace", "essay1", "--theme", "dark") as figure:
            self.assertTrue(any("ρ = -1.00" in text for text, _ in support.texts(figure)))
        self.assertIn("did you mean 'essay1'", support.plot("fidelity", folder, "--trace", "esay1")[2])

    def test_joins_folders_and_reads_named_files(self):
        one, two = judged_run([SWAPPED]), judged_run([FALLING])
        with h5py.File(os.path.join(two, "results.h5"), "r+") as file:
            file["traces/digest"][0], file["traces/name"][0] = "d-two", "two"
        moved = os.path.join(two, "elsewhere.h5")
        write_closed(moved, [("two", s, 128, k) for s, k in zip(SPECS, FALLING)], {"two": "d-two"})
        code, out, err = support.plot(
            "fidelity", one, two, "--closed", moved, "--closed", os.path.join(one, "closed.h5"), "--y", "output_error"
        )
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"output_error +0\.90 +-1\.00 +0\.90")


class Prompts(unittest.TestCase):
    def test_are_twelve_of_four_kinds_in_two_halves(self):
        self.assertEqual(len({p.name for p in fidelity_prompts.PROMPTS}), 12)
        for kind in ("essay", "news", "needle", "arithmetic"):
            self.assertEqual(sum(p.kind == kind for p in fidelity_prompts.PROMPTS), 3)
        for half in ("tuning", "reporting"):
            chosen = [p for p in fidelity_prompts.PROMPTS if p.half == half]
            self.assertEqual((len(chosen), len({p.kind for p in chosen})), (6, 4))

    @unittest.skipUnless(os.path.isdir(DATA), "needs the prompts in ../shared/data")
    def test_halves_share_no_text_and_needles_are_in_their_prompts(self):
        texts = {p: fidelity_prompts.text_of(p, DATA) for p in fidelity_prompts.PROMPTS}
        for prompt, text in texts.items():
            self.assertTrue(2000 < len(text) < 6000, prompt.name)
        lines = {half: set() for half in ("tuning", "reporting")}
        for prompt, text in texts.items():
            if prompt.kind == "needle":
                lines[prompt.half].add(
                    next(line for line in text.split("\n") if "One of the special magic uuids" in line)
                )
            if prompt.kind in ("essay", "news"):
                lines[prompt.half].update(line for line in text.split(". ") if len(line) > 60)
            if prompt.kind == "arithmetic":
                lines[prompt.half].update(line for line in text.split("\n") if line.startswith("Question: "))
        self.assertFalse(lines["tuning"] & lines["reporting"])

    def test_that_are_missing_are_named(self):
        with self.assertRaisesRegex(UserError, "no/such.*--data names the folder"):
            fidelity_prompts.text_of(fidelity_prompts.PROMPTS[0], "no/such")


# Stands for kvsim, kvsim-record and kvsim-judge: notes its call and leaves what the next step needs.
STUB = """#!{python}
import os, sys
sys.path[:0] = [{tests!r}]
name = os.path.basename(sys.argv[0])
with open({calls!r}, "a") as file:
    print(name, os.environ.get("OMP_NUM_THREADS"), *sys.argv[1:], file=file)
if name == {failing!r}:
    sys.exit("it went wrong\\nsecond line")
if name == "kvsim":
    import test_fidelity
    test_fidelity.stub_replay(sys.argv)
"""


def stub_replay(argv):
    """A run of SPECS named after the trace, and closed.h5 beside it."""
    folder, name = argv[argv.index("--out") + 1], os.path.basename(argv[2])[: -len(".h5")]
    synthetic.write_results(folder, specs=SPECS, references=False, layers=2, budgets=["10%", "20%"], names=[name])
    tokens = [118, 236]
    cells = [(name, s, b, k / b) for s, k in zip(SPECS, SWAPPED) for b in tokens]
    write_closed(os.path.join(folder, "closed.h5"), cells, {name: f"d-{name}"})


@unittest.skipUnless(os.path.isdir(DATA), "needs the prompts in ../shared/data")
class StudySteps(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=support.ROOT)
        self.calls = os.path.join(self.folder, "calls")
        self.stubs("nobody")

    def stubs(self, failing):
        for name in ("kvsim", "kvsim-record", "kvsim-judge"):
            path = os.path.join(self.folder, name)
            with open(path, "w") as file:
                file.write(
                    STUB.format(
                        python=sys.executable,
                        tests=os.path.dirname(os.path.abspath(__file__)),
                        calls=self.calls,
                        failing=failing,
                    )
                )
            os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)

    def study(self, *more):
        return fidelity_study.run(
            ["--data", DATA, "--out", os.path.join(self.folder, "out"), "--jobs", "1", "--recorder", self.folder]
            + ["--kvsim", os.path.join(self.folder, "kvsim"), *more],
            ROOT,
        )

    def called(self):
        if not os.path.exists(self.calls):
            return []
        with open(self.calls) as file:
            return [line.split()[:2] for line in file]

    def test_record_replay_and_judge_each_prompt_once_on_one_thread(self):
        text = self.study("--quick")
        self.assertEqual(
            self.called(), [[name, "1"] for _ in range(2) for name in ("kvsim-record", "kvsim", "kvsim-judge")]
        )
        self.assertIn("== the tuning half: essay-useful-0", text)
        self.assertIn("== the reporting half: news-3", text)
        self.assertTrue(os.path.getsize(os.path.join(self.folder, "out", "fidelity.png")) > 10000)
        self.assertEqual(self.study("--quick"), text)
        self.assertEqual(len(self.called()), 6)  # nothing was done again
        with open(os.path.join(self.folder, "out", "quick.ini")) as file:
            policies = [line for line in file if line.startswith("policy")]
        self.assertEqual(len(policies), len(fidelity_study.QUICK_POLICIES))

    def test_a_fault_ends_the_study_in_one_line_and_the_next_run_goes_on(self):
        self.stubs("kvsim-judge")
        with self.assertRaisesRegex(
            UserError, r"^kvsim-judge ended with 1: second line \(all of it in .*-judge.log\)$"
        ):
            self.study("--quick")
        with self.assertRaisesRegex(UserError, "holds no finished prompt"):
            self.study("--quick", "--show")
        before = len(self.called())
        self.stubs("nobody")
        self.study("--quick")
        names = [name for name, _ in self.called()[before:]]
        self.assertEqual(names.count("kvsim-judge"), 2)
        self.assertLess(names.count("kvsim-record"), 2)  # the first prompt's recording was there

    def test_another_text_is_recorded_again_and_other_policies_only_replayed(self):
        self.study("--quick")
        done = len(self.called())
        self.addCleanup(setattr, fidelity_study, "QUICK_POLICIES", fidelity_study.QUICK_POLICIES)
        fidelity_study.QUICK_POLICIES = fidelity_study.QUICK_POLICIES[1:]
        self.study("--quick")
        self.assertEqual([name for name, _ in self.called()[done:]], ["kvsim", "kvsim-judge"] * 2)
        done = len(self.called())
        text_of = fidelity_prompts.text_of
        self.addCleanup(setattr, fidelity_prompts, "text_of", text_of)
        fidelity_prompts.text_of = lambda prompt, data: text_of(prompt, data) + ("." if prompt.name == "news-3" else "")
        runs = os.path.join(self.folder, "out", "runs")
        for name in os.listdir(runs):
            open(os.path.join(runs, name, "older"), "w").close()
        self.study("--quick")
        kept = [name for name in os.listdir(runs) if os.path.exists(os.path.join(runs, name, "older"))]
        self.assertEqual(kept, ["essay-useful-0"])  # kvsim would refuse to go on with another recording
        self.assertEqual([name for name, _ in self.called()[done:]], ["kvsim-record", "kvsim", "kvsim-judge"])

    def test_threads_that_write_the_same_file_do_not_meet(self):
        path = os.path.join(self.folder, "quick.ini")
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda i: fidelity_study._write(path, f"{i}\n"), range(400)))  # raises what a thread raised
        self.assertEqual([name for name in os.listdir(self.folder) if name.endswith(".part")], [])

    def test_quick_has_a_folder_of_its_own(self):
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        programs = ["--recorder", self.folder, "--kvsim", os.path.join(self.folder, "kvsim")]
        fidelity_study.run(["--data", DATA, "--quick", *programs], ROOT)
        self.assertEqual(os.listdir("runs"), ["fidelity-quick"])

    def test_programs_that_are_missing_are_named(self):
        os.remove(os.path.join(self.folder, "kvsim-judge"))
        with self.assertRaisesRegex(UserError, "no program .*kvsim-judge; ./demo --record"):
            self.study("--quick")


@unittest.skipUnless(
    os.path.isdir(DATA)
    and os.path.exists(KVSIM)
    and os.path.exists(os.path.join(RECORDER, "kvsim-judge"))
    and os.environ.get("KVSIM_STUDIES"),
    "minutes: KVSIM_STUDIES=1, a built kvsim, the recorder and ../shared/data",
)
class WholeStudy(unittest.TestCase):
    def test_records_replays_and_judges_two_prompts(self):
        folder = tempfile.mkdtemp(dir=support.ROOT)
        done = subprocess.run(
            [
                sys.executable,
                os.path.join(ROOT, "analysis", "studies", "fidelity"),
                "--data",
                DATA,
                "--quick",
                "--out",
                folder,
                "--kvsim",
                KVSIM,
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("== the reporting half: news-3", done.stdout)
        with open(os.path.join(folder, "reporting.csv"), newline="") as file:
            found = {r["predictor"]: float(r["spearman"]) for r in csv.DictReader(file)}
        self.assertGreater(found["predicted_kl"], 0.6)


if __name__ == "__main__":
    unittest.main()
