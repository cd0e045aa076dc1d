"""Colours: the same for a policy in every figure, apart for colour-blind readers, and a look of its own for every variant."""

import subprocess
import sys
import unittest

import numpy as np

import support
import synthetic
from kvsim_analysis import colors, style

# Linear-light simulation of Machado, Oliveira and Fernandes (2009), severity 1.0, table of the paper's web page.
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


class PolicyColor(unittest.TestCase):
    def test_does_not_depend_on_the_other_variants_of_the_figure(self):
        alone = style.looks(["h2o"], ["h2o"], "light")[0]
        crowd = style.looks(["tova", "knorm", "h2o", "mine"], list("abcd"), "light")[2]
        self.assertEqual((alone.color, alone.marker, alone.dashes), (crowd.color, crowd.marker, crowd.dashes))

    def test_of_an_unknown_policy_is_the_same_in_another_process(self):
        code = "from kvsim_analysis.colors import *; print(policy_color('my_policy'), policy_marker('my_policy'))"
        seen = {
            subprocess.run(
                [sys.executable, "-c", f"import sys; sys.path.insert(0, {support.PACKAGE!r}); {code}"],
                check=True,
                capture_output=True,
                env={"PYTHONHASHSEED": seed},
                text=True,
            ).stdout.strip()
            for seed in ("1", "2")
        }
        self.assertEqual(seen, {f"{colors.policy_color('my_policy')} {colors.policy_marker('my_policy')}"})

    def test_palettes_stay_apart_for_colour_blind_readers(self):
        for theme in ("light", "dark"):
            linear = np.array(
                [colors.linear_rgb(colors.policy_color(p, theme)) for p in list(colors.KNOWN)[: len(colors.PALETTE)]]
            )
            for name, sight in (("normal", np.eye(3)), ("protanopia", PROTANOPIA), ("deuteranopia", DEUTERANOPIA)):
                seen = colors.oklab(np.clip(linear @ sight.T, 0, 1))
                apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(len(seen))
                self.assertGreater(apart.min(), 0.09, (theme, name))

    def test_known_policies_differ_in_colour_or_in_marker(self):
        self.assertEqual(
            len({(colors.policy_color(p), colors.policy_marker(p)) for p in colors.KNOWN}), len(colors.KNOWN)
        )


class Looks(unittest.TestCase):
    def test_variants_of_a_policy_share_hue_and_marker_but_look_different(self):
        for theme in ("light", "dark"):
            looks = style.looks(["snapkv"] * 12, [str(i) for i in range(12)], theme)
            hues = [colors.to_lch(k.color)[2] for k in looks]
            self.assertLess(max(hues) - min(hues), 0.12)
            self.assertEqual(len({k.marker for k in looks}), 1)
            self.assertEqual(len({(k.color, str(k.dashes), k.hollow) for k in looks}), 12)

    def test_references_are_grey_dashed_and_without_markers(self):
        for look in style.looks(list(colors.REFERENCES), list(colors.REFERENCES), "light"):
            self.assertLess(colors.to_lch(look.color)[1], 0.01)
            self.assertNotEqual(look.dashes, "-")
            self.assertIsNone(look.marker)
            self.assertTrue(look.reference)

    def test_thirty_variants_have_thirty_looks(self):
        looks = style.looks([synthetic.policy_of(s) for s in synthetic.MANY], synthetic.MANY, "light")
        self.assertEqual(len({(k.color, str(k.dashes), k.marker, k.hollow) for k in looks}), len(synthetic.MANY))


if __name__ == "__main__":
    unittest.main()
