"""Specs: parsing, matching by some parameters, and labels that are short and never equal."""

import unittest

import support  # noqa: F401  (puts the package on the path)
import synthetic
from kvsim_analysis.errors import UserError
from kvsim_analysis.specs import Spec, matches, parse, short_labels


class Parse(unittest.TestCase):
    def test_reads_nested_policies_lists_and_quoted_text(self):
        spec = parse('compose(score=snapkv(window=32),reduce=[a,b],file="x,(y).h5",base=knorm)')
        self.assertEqual(spec.name, "compose")
        self.assertEqual(spec.values["score"], Spec("snapkv", {"window": "32"}))
        self.assertEqual(spec.values["reduce"], ["a", "b"])
        self.assertEqual(spec.values["file"], '"x,(y).h5"')
        self.assertEqual(spec.values["base"], Spec("knorm", {}))

    def test_a_fault_names_its_place(self):
        for text in ("snapkv(window=", "snapkv(window=3))", "", "a(b=[1", 'a(b="c)'):
            with self.assertRaises(UserError, msg=text) as caught:
                parse(text)
            self.assertIn("at character", str(caught.exception))


class Matches(unittest.TestCase):
    def test_only_named_parameters_have_to_agree(self):
        whole = parse("ada(score=snapkv(window=32,kernel=5),alpha=0.2,form=guarantee)")
        for text in (
            "ada",
            "ada(alpha=0.20)",
            "ada(score=snapkv)",
            "ada(score=snapkv(window=32))",
            "ada(snapkv(kernel=5))",
        ):
            self.assertTrue(matches(parse(text), whole), text)
        for text in ("snapkv", "ada(alpha=0.3)", "ada(score=snapkv(window=64))", "ada(beta=1)"):
            self.assertFalse(matches(parse(text), whole), text)


class ShortLabels(unittest.TestCase):
    def test_show_only_what_differs_between_variants_of_a_policy(self):
        snap = synthetic.SNAPKV
        got = short_labels(
            [
                snap.format(w=16, k=5),
                snap.format(w=32, k=5),
                "h2o",
                "random(seed=0)",
                f"ada(score={snap.format(w=32, k=5)},alpha=0.2,form=guarantee)",
            ]
        )
        self.assertEqual(got, ["snapkv window=16", "snapkv window=32", "h2o", "random", "ada(snapkv)"])

    def test_wrappers_say_what_they_wrap_and_in_which_parameters_it_differs(self):
        snap = synthetic.SNAPKV
        got = short_labels(
            [
                f"ada(score={snap.format(w=w, k=5)},alpha={a},form=guarantee)"
                for w, a in ((16, 0.2), (32, 0.2), (32, 0.5))
            ]
            + ["ada(score=knorm,alpha=0.2,form=guarantee)"]
        )
        self.assertEqual(
            got,
            [
                "ada(snapkv window=16) alpha=0.2",
                "ada(snapkv window=32) alpha=0.2",
                "ada(snapkv window=32) alpha=0.5",
                "ada(knorm) alpha=0.2",
            ],
        )

    def test_a_difference_between_wrappers_of_different_policies_is_shown(self):
        got = short_labels(["ada(score=knorm,alpha=0.2)", "ada(score=tova,alpha=0.5)"])
        self.assertEqual(got, ["ada(knorm) alpha=0.2", "ada(tova) alpha=0.5"])

    def test_no_two_variants_get_the_same_label(self):
        hard = [
            'external(file="a/s.h5",dataset="/x")',
            'external(file="b/s.h5",dataset="/x")',
            "snapkv",
            "snapkv(window=64)",
            "a(b=1,c=2)",
            "a(b=1)",
            "broken((",
            "x(reduce=[1,2])",
            "x(reduce=[1,3])",
            "x(reduce=[1,2],d=y)",
        ]
        for specs in (hard, synthetic.MANY + synthetic.REFERENCES, synthetic.POLICIES):
            labels = short_labels(specs)
            self.assertEqual(len(set(labels)), len(set(specs)), labels)

    def test_files_are_told_apart_by_their_names(self):
        got = short_labels(['external(file="/a/one.h5",dataset="/x")', 'external(file="/a/two.h5",dataset="/x")'])
        self.assertEqual(got, ["external file=one.h5", "external file=two.h5"])

    def test_files_of_one_name_are_told_apart_by_their_folders(self):
        got = short_labels(['external(file="/a/s.h5",dataset="/x")', 'external(file="/b/s.h5",dataset="/x")'])
        self.assertEqual(got, ["external file=/a/s.h5", "external file=/b/s.h5"])


if __name__ == "__main__":
    unittest.main()
