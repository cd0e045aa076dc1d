"""What the figures show: no text on text, the right points, stable frontiers, intervals and differences."""

import unittest

import numpy as np
from matplotlib.legend import Legend

import support
import synthetic
from kvsim_analysis import axes, bootstrap, curves, load, select
from kvsim_analysis.commands.compare import _cells, _paired
from kvsim_analysis.commands.pareto import frontier


class Texts(unittest.TestCase):
    def test_of_the_default_figure_never_overlap(self):
        for kind in ("one", "five", "standard", "many", "percent"):
            for theme in ("light", "dark") if kind in ("standard", "many") else ("light",):
                with support.drawn("curve", support.results(kind), "--theme", theme) as figure:
                    self.assertEqual(support.overlaps(figure), [], (kind, theme))

    def test_of_other_figures_never_overlap(self):
        run, many = support.results("standard"), support.results("many")
        for call in (
            ("pareto", many),
            ("pareto", run, "--y", "miss_rate", "--x", "fraction"),
            ("heatmap", many),
            ("heatmap", run),
            ("heatmap", support.results("one")),
            ("steps", run, "--y", "output_error", "miss_rate"),
            ("steps", run, "--smooth", "5"),
            ("compare", run, "--variant", "h2o", "--variant", "tova"),
            ("compare", run, support.results("after")),
            ("curve", many, "--y", "output_error", "--x", "resident_bytes"),
            ("curve", run, "--x", "fraction", "--layer", "1", "2"),
            ("curve", run, "--y", "output_error", "miss_rate", "free_consistency", "projected_error", "--layer", "1"),
        ):
            with support.drawn(*call) as figure:
                self.assertEqual(support.overlaps(figure), [], call)

    def test_of_every_metric_never_overlap(self):
        metrics = [m for m, _, _ in synthetic.METRICS if m not in ("evidence_recall", "window_consistency")]
        with support.drawn("curve", support.results("small"), "--y", *metrics) as figure:
            self.assertEqual(support.overlaps(figure), [])
        with support.drawn(
            "compare", support.results("small"), "--policy", "h2o", "--policy", "tova", "--y", *metrics
        ) as figure:
            self.assertEqual(support.overlaps(figure), [])

    def test_of_long_labels_never_overlap(self):
        parts = "query=window,value=caote,redundancy=none,heads=ada(alpha={a}),layers=cake,sinks=4,recent={r}"
        specs = [
            f"compose(score=snapkv(window={w}),{parts.format(a=a, r=r)})" for w, a, r in ((16, 0.2, 32), (32, 0.5, 64))
        ]
        specs += [
            f'external(file="/data/{x}/a_rather_long_name_of_a_file_with_scores.h5",dataset="/mine")' for x in "abc"
        ]
        folder = support.fresh("long", specs=specs + ["a_policy_of_mine", "another_policy_of_mine"])
        for command in ("curve", "pareto", "heatmap"):
            with support.drawn(command, folder) as figure:
                self.assertEqual(support.overlaps(figure), [], command)

    def test_the_check_itself_sees_an_overlap(self):
        with support.drawn("curve", support.results("one")) as figure:
            ax = figure.axes[0]
            figure.text(
                *figure.transFigure.inverted().transform(ax.transAxes.transform((0.02, 1.02))), "meets the panel's note"
            )
            self.assertEqual(len(support.overlaps(figure)), 1)


class CurveFigure(unittest.TestCase):
    def test_has_three_panels_and_lists_references_apart(self):
        with support.drawn("curve", support.results("standard")) as figure:
            labels = [ax.get_ylabel() for ax in figure.axes]
            self.assertEqual(
                labels, ["output error [relative L2]", "set consistency [fraction]", "miss rate (c = 0.9) [fraction]"]
            )
            self.assertEqual([ax.get_yscale() for ax in figure.axes], ["log", "linear", "linear"])
            policies, references = figure.findobj(Legend)
            self.assertEqual(
                [t.get_text() for t in references.get_texts()], ["full", "oracle_static", "oracle_topk", "random"]
            )
            self.assertEqual(len(policies.get_texts()), 16)

    def test_budget_axis_is_logarithmic_with_plain_numbers(self):
        with support.drawn("curve", support.results("standard")) as figure:
            ax = figure.axes[0]
            self.assertEqual(ax.get_xscale(), "log")
            self.assertEqual([t.get_text() for t in ax.get_xticklabels()], ["32", "64", "128", "256", "512", "1024"])

    def test_budgets_of_the_whole_prompt_are_left_out_and_the_note_says_so(self):
        with support.drawn("curve", support.results("one")) as figure:
            for line in figure.axes[0].get_lines():
                if len(line.get_xdata()) > 2:
                    self.assertLess(max(line.get_xdata()), 1184)
            self.assertTrue(any("nothing is evicted" in text.replace("\n", " ") for text, _ in support.texts(figure)))

    def test_they_stay_when_there_is_nothing_else(self):
        folder = support.fresh("whole", budgets=[2048, 4096])
        with support.drawn("curve", folder, "--y", "set_consistency") as figure:
            self.assertTrue(any(max(line.get_xdata()) == 4096 for line in figure.axes[0].get_lines()))

    def test_one_variant_at_one_budget_draws(self):
        with support.drawn("curve", support.fresh("point", specs=["h2o"], budgets=[64], references=False)) as figure:
            self.assertEqual(support.overlaps(figure), [])
            self.assertEqual(len(figure.axes[0].get_xticks()), 3)

    def test_bands_appear_with_several_traces_only(self):
        for kind, bands in (("one", 0), ("five", 8)):  # five policies, three references; full is a level
            with support.drawn("curve", support.results(kind), "--y", "miss_rate") as figure:
                self.assertEqual(len(figure.axes[0].collections), bands)

    def test_filters_keep_the_references(self):
        with support.drawn("curve", support.results("standard"), "--variant", "snapkv(window=32)") as figure:
            names = [t.get_text() for legend in figure.findobj(Legend) for t in legend.get_texts()]
        self.assertEqual(names, ["snapkv window=32", "full", "oracle_static", "oracle_topk", "random"])


class Gather(unittest.TestCase):
    def test_values_are_those_of_the_summary(self):
        run = load(support.results("standard"))
        at = list(run.specs).index("h2o")
        curve = curves.gather(run, "miss_rate", [at]).curves[at]
        rows = run.column("summary", "variant") == at
        budgets = run.column("summary", "budget_tokens")[rows]
        keep = budgets < 1184
        np.testing.assert_array_equal(curve.x, budgets[keep])
        np.testing.assert_allclose(curve.mean, run.column("summary", "miss_rate_mean")[rows][keep])

    def test_percent_budgets_are_one_point_over_traces_of_different_length(self):
        run = load(support.results("percent"))
        curve = curves.gather(run, "output_error", [0], x="fraction").curves[0]
        self.assertEqual(len(curve.x), 5)
        self.assertAlmostEqual(curve.x[-1], 0.4, places=3)
        self.assertTrue((curve.low < curve.mean).all() and (curve.mean < curve.high).all())

    def test_all_layers_by_name_equal_the_summary(self):
        run = load(support.results("standard"))
        whole = curves.gather(run, "output_error", [4]).curves[4]
        layered = curves.gather(run, "output_error", [4], wanted_layers=list(range(8))).curves[4]
        np.testing.assert_allclose(whole.mean, layered.mean)

    def test_metrics_of_layers_are_averaged_where_the_summary_lacks_them(self):
        run = load(support.results("standard"))
        curve = curves.gather(run, "projected_error", [4]).curves[4]
        rows = (run.column("layers", "variant") == 4) & (run.column("layers", "budget_tokens") == 128)
        self.assertAlmostEqual(
            curve.mean[list(curve.x).index(128)], run.column("layers", "projected_error")[rows].mean()
        )


class MeanInterval(unittest.TestCase):
    def test_is_seeded_and_covers_the_mean(self):
        values = np.random.default_rng(1).normal(size=(12, 5))
        one, two, other = (bootstrap.mean_interval(values, s) for s in (7, 7, 8))
        np.testing.assert_array_equal(one, two)
        self.assertFalse(np.array_equal(one[1], other[1]))
        self.assertTrue((one[1] < one[0]).all() and (one[0] < one[2]).all())

    def test_width_is_that_of_a_mean(self):
        values = np.random.default_rng(2).normal(size=(400, 1))
        _, low, high = bootstrap.mean_interval(values)
        self.assertAlmostEqual(float(high[0] - low[0]), 2 * 1.96 / 20, delta=0.02)  # 2 z sigma / sqrt(n)

    def test_undefined_values_are_left_out(self):
        mean, low, high = bootstrap.mean_interval([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
        np.testing.assert_array_equal(mean, [2.0, 5.0])
        self.assertTrue(np.isnan(low[1]) and np.isnan(high[1]))
        self.assertEqual((low[0], high[0]), (1.0, 3.0))


class Frontier(unittest.TestCase):
    def test_holds_the_points_that_nothing_beats(self):
        x, y = [1, 2, 2, 3, 4, 5], [9, 8, 5, 6, 4, 4]
        self.assertEqual(frontier(x, y, True), [0, 2, 4])
        self.assertEqual(frontier(x, y, False), [0])
        self.assertEqual(frontier([1, 2], [np.nan, 3.0], True), [1])


class Paired(unittest.TestCase):
    def arguments(self):
        class Options:
            x, layer = "budget_tokens", None

        return Options

    def test_differences_pair_layer_head_and_budget(self):
        run = load(support.results("standard"))
        first, second = (list(run.specs).index(s) for s in ("h2o", "tova"))
        x, differences, units = _paired(*(_cells(run, "miss_rate", v, self.arguments()) for v in (first, second)))
        self.assertEqual((differences.shape, units), ((24, 11), "24 (layer, KV head) pairs"))
        rows, variant, budget = (run.column("rows", c) for c in ("miss_rate", "variant", "budget_tokens"))
        expected = [
            rows[(variant == second) & (budget == b)].mean() - rows[(variant == first) & (budget == b)].mean()
            for b in x
        ]
        np.testing.assert_allclose(differences.mean(0), expected)

    def test_several_traces_are_the_units(self):
        run = load(support.results("five"))
        _, differences, units = _paired(*(_cells(run, "miss_rate", v, self.arguments()) for v in (0, 1)))
        self.assertEqual((len(differences), units), (6, "6 traces"))

    def test_a_run_against_itself_is_zero(self):
        run = support.results("standard")
        with support.drawn("compare", run, run) as figure:
            for line in figure.axes[0].get_lines():
                np.testing.assert_array_equal(line.get_ydata(), 0)


class Heatmap(unittest.TestCase):
    def test_maps_share_a_scale_and_hold_the_rows(self):
        run = load(support.results("standard"))
        with support.drawn(
            "heatmap", support.results("standard"), "--budget", "128", "--policy", "snapkv", "--policy", "h2o"
        ) as figure:
            images = [ax.images[0] for ax in figure.axes if ax.images]
            self.assertEqual(len({i.get_clim() for i in images}), 1)
            self.assertEqual(
                [ax.get_title(loc="left") for ax in figure.axes[:4]],
                ["snapkv window=16", "snapkv window=32", "snapkv window=64", "h2o"],
            )
            shown = np.asarray(images[3].get_array())
        rows = np.flatnonzero(
            (run.column("rows", "variant") == list(run.specs).index("h2o"))
            & (run.column("rows", "budget_tokens") == 128)
        )
        for row in rows:
            at = run.column("rows", "layer")[row], run.column("rows", "kv_head")[row]
            self.assertEqual(shown[at], run.column("rows", "output_error")[row])


class Steps(unittest.TestCase):
    def test_percent_budgets_follow_every_prompt(self):
        with support.drawn(
            "steps", support.results("percent"), "--budget", "10%", "--policy", "h2o", "--no-references"
        ) as figure:
            (line,) = figure.axes[0].get_lines()
        run = load(support.results("percent"))
        cells, values = run.detail_arrays("output_error")
        tokens = np.array([int(p * 0.1) for p in run.trace_table["prompt"]])
        keep = (cells["variant"] == list(run.specs).index("h2o")) & (cells["budget_tokens"] == tokens[cells["trace"]])
        np.testing.assert_allclose(line.get_ydata(), values[keep].mean(0), rtol=1e-6)


class AxisText(unittest.TestCase):
    def test_numbers_read_well(self):
        self.assertEqual(
            [axes.tokens_text(v) for v in (64, 1024, 8192, 16384, 131072, 12000)],
            ["64", "1024", "8192", "16k", "128k", "12000"],
        )
        self.assertEqual([axes.bytes_text(v) for v in (512, 65536, 1572864)], ["512 B", "64 KiB", "1.5 MiB"])


class Variants(unittest.TestCase):
    def test_are_found_by_label_spec_part_and_id(self):
        variants = select.Variants(load(support.results("standard")))
        self.assertEqual(variants.find("snapkv window=32"), [1])
        self.assertEqual(variants.find(synthetic.POLICIES[1]), [1])
        self.assertEqual(variants.find("snapkv(window=32)"), [1])
        self.assertEqual(variants.find(f"{1:016x}"), [1])
        self.assertEqual(variants.find("snapkv"), [0, 1, 2])
        self.assertEqual(variants.find("ada(score=snapkv)"), [11])


if __name__ == "__main__":
    unittest.main()
