"""The consistency figure: whose queries a spec looks at, the panels and their points, what it says when the run is another."""

import unittest

import numpy as np

import support
import synthetic
from kvsim_analysis import load, sources

COMPOSE = "compose(score=none,base=attention,query={q},reduce=[sum,group(mean),max(7)],value=none,recent={r},unit=kv)"
PSEUDO = 'lookahead(pass="",length=8,mask=causal)'
SPECS = [
    synthetic.SNAPKV.format(w=8, k=7),
    synthetic.SNAPKV.format(w=32, k=7),
    'laq(lookahead="",length=8,mask=causal,kernel=7,pool=max,unit=kv)',
    'laq_pp(lookahead="",length=8,mask=causal,kernel=7,pool=max,unit=kv,window=8)',
    COMPOSE.format(q="window(8)", r=0),
    COMPOSE.format(q=f"[window(8),{PSEUDO}]", r=0),
    COMPOSE.format(q="oracle(8)", r=0),
    "knorm",
]
_made = {}


def folder(**options):
    key = str(sorted(options.items()))
    if key not in _made:
        _made[key] = support.fresh("consistency", specs=SPECS, **{"detail": True, "layers": 3, **options})
    return _made[key]


class Sources(unittest.TestCase):
    def test_of_policies_compositions_and_wrappers(self):
        expected = {
            SPECS[0]: "window",
            SPECS[2]: "pseudo",
            SPECS[3]: "union",
            SPECS[4]: "window",
            SPECS[5]: "union",
            SPECS[6]: "oracle",
            COMPOSE.format(q=PSEUDO, r=8): "pseudo",
            COMPOSE.format(q="all", r=0): "all",
            COMPOSE.format(q="[window(8),oracle(8)]", r=0): "other",
            "compose(score=none,base=knorm,query=window(64))": "other",
            f"ada(score={SPECS[3]},alpha=0.2)": "union",
            "tova": "window",
            "knorm": "other",
            "not a spec (": "other",
        }
        self.assertEqual({spec: sources.source_of(spec) for spec in expected}, expected)

    def test_looks_share_a_colour_family_and_no_label(self):
        looks = sources.looks(SPECS[:7], [f"label {i}" for i in range(7)], "light")
        self.assertEqual(len({look.label for look in looks}), 7)
        self.assertTrue(looks[0].label.startswith("window queries: label 0"))
        self.assertEqual(looks[5].label, "window and pseudo queries: window(8) + lookahead(8), nothing protected")
        self.assertEqual(looks[0].marker, looks[4].marker)
        self.assertNotEqual(looks[0].color, looks[2].color)

    def test_lines_that_would_read_alike_are_told_apart(self):
        twins = [COMPOSE.format(q="window(8)", r=0), COMPOSE.format(q="window(8)", r=0).replace("max(7)", "max(5)")]
        self.assertEqual(len({look.label for look in sources.looks(twins, ["a", "b"], "light")}), 2)


class Figure(unittest.TestCase):
    def test_has_six_panels_without_text_on_text(self):
        for call in ((folder(),), (folder(), "--theme", "dark", "--corrected"), (folder(traces=3),)):
            with support.drawn("consistency", *call) as figure:
                self.assertEqual(len(figure.axes), 6)
                self.assertEqual(support.overlaps(figure), [], call)
                x_labels = [ax.get_xlabel() for ax in figure.axes]
                self.assertEqual(x_labels[2::3], ["layer", "decode step"])

    def test_draws_the_means_by_layer(self):
        run = load(folder())
        rows = run.rows
        rows = rows[(rows.budget_tokens == 128) & (rows.variant == SPECS[3])]
        with support.drawn("consistency", folder(), "--budget", "128", "--variant", "laq_pp") as figure:
            (line,) = figure.axes[2].get_lines()
            np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
            np.testing.assert_allclose(line.get_ydata(), rows.groupby("layer").free_consistency.mean())

    def test_leaves_policies_without_such_queries_out_unless_named(self):
        def labels(*options):
            with support.drawn("consistency", folder(), *options) as figure:
                return " ".join(text for text, _ in support.texts(figure))

        self.assertNotIn("knorm", labels())
        self.assertIn("knorm", labels("--variant", "knorm"))
        self.assertNotIn("random", labels("--no-references"))

    def test_without_steps_has_five_panels_and_says_so(self):
        with support.drawn("consistency", folder(detail=False)) as figure:
            self.assertEqual(len(figure.axes), 5)
            self.assertTrue(any("--detail steps" in text for text, _ in support.texts(figure)))

    def test_of_another_run_names_the_one_to_make(self):
        code, _, err = support.plot("consistency", support.fresh("knorm_only", specs=["knorm"]))
        self.assertEqual(code, 2)
        self.assertIn("--config analysis/studies/consistency.ini", err)


if __name__ == "__main__":
    unittest.main()
