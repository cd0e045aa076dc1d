"""The command: figures in all formats, whole or not at all, and faults in one line with exit code 2."""

import os
import re
import subprocess
import sys
import tempfile
import unittest

import support

HEADS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
CALLS = {
    "curve": ["small"],
    "pareto": ["small"],
    "heatmap": ["small"],
    "steps": ["small", "--policy", "h2o", "--policy", "tova"],
    "compare": ["small", "--variant", "h2o", "--variant", "tova"],
}


class Writes(unittest.TestCase):
    def test_every_subcommand_in_every_format(self):
        with tempfile.TemporaryDirectory() as folder:
            for command, (kind, *options) in CALLS.items():
                for extension, head in HEADS.items():
                    path = os.path.join(folder, command + extension)
                    code, out, err = support.plot(command, support.results(kind), *options, "-o", path)
                    self.assertEqual((code, out, err), (0, path + "\n", ""))
                    with open(path, "rb") as file:
                        self.assertTrue(file.read(8).startswith(head), path)
            self.assertEqual(len(os.listdir(folder)), len(CALLS) * len(HEADS))

    def test_without_output_into_the_results_folder(self):
        folder = support.fresh("default")
        code, out, _ = support.plot("curve", folder)
        self.assertEqual((code, out.strip()), (0, os.path.join(folder, "curve.png")))
        self.assertTrue(os.path.isfile(out.strip()))

    def test_the_results_file_may_be_named_instead_of_its_folder(self):
        folder = support.fresh("file")
        code, out, _ = support.plot("curve", os.path.join(folder, "results.h5"))
        self.assertEqual((code, out.strip()), (0, os.path.join(folder, "curve.png")))

    def test_the_same_bytes_every_time(self):
        with tempfile.TemporaryDirectory() as folder:
            for extension in HEADS:
                seen = set()
                for name in ("a", "b"):
                    path = os.path.join(folder, name + extension)
                    support.plot("curve", support.results("one"), "-o", path)
                    with open(path, "rb") as file:
                        seen.add(file.read())
                self.assertEqual(len(seen), 1, extension)

    def test_pareto_lists_its_frontier(self):
        with tempfile.TemporaryDirectory() as folder:
            _, out, _ = support.plot("pareto", support.results("small"), "--list", "-o", os.path.join(folder, "p.png"))
        *points, path = out.strip().split("\n")
        self.assertTrue(path.endswith("p.png"))
        errors = [float(re.split(r"\s{2,}", p.strip())[1]) for p in points]
        self.assertGreaterEqual(len(errors), 3)
        self.assertEqual(errors, sorted(errors, reverse=True))

    def test_a_failed_write_leaves_nothing(self):
        import matplotlib.figure

        original = matplotlib.figure.Figure.savefig

        def full_disk(figure, path, **options):
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(28, "No space left on device")

        with tempfile.TemporaryDirectory() as folder:
            matplotlib.figure.Figure.savefig = full_disk
            try:
                code, _, err = support.plot("curve", support.results("one"), "-o", os.path.join(folder, "c.png"))
            finally:
                matplotlib.figure.Figure.savefig = original
            self.assertEqual(code, 2)
            self.assertIn("No space left on device", err)
            self.assertEqual(os.listdir(folder), [])


class Faults(unittest.TestCase):
    def fault(self, part, *arguments):
        code, out, err = support.plot(*arguments)
        self.assertEqual(code, 2, (arguments, out, err))
        self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(err.startswith("kvsim-plot: "), err)
        self.assertIn(part, err)

    def test_wrong_words(self):
        run = support.results("one")
        self.fault("did you mean 'curve'", "curv", run)
        self.fault("did you mean '--policy'", "curve", run, "--polcy", "h2o")
        self.fault("did you mean 'miss_rate'", "curve", run, "--y", "mis_rate")
        self.fault("did you mean 'snapkv'", "curve", run, "--policy", "snapvk")
        self.fault("did you mean 'snapkv'", "curve", run, "--variant", "snapkw")
        self.fault("no variant 'snapkv(window=99)'", "curve", run, "--variant", "snapkv(window=99)")
        self.fault("no layer '99'", "curve", run, "--layer", 99)
        self.fault("the nearest is 96", "heatmap", run, "--budget", 100)
        self.fault("has no p42; there are: mean, p50, p95, p99, max", "curve", run, "--y", "miss_rate", "--stat", "p42")
        self.fault("over all layers", "curve", run, "--stat", "p95", "--layer", 1)
        self.fault("invalid choice", "curve", run, "--theme", "sepia")
        self.fault("whole number", "curve", run, "--layer", "one")
        self.fault("write the folder before --y", "curve", "--y", "miss_rate", run)

    def test_missing_input(self):
        self.fault("kvsim-plot: no such folder", "curve", os.path.join(support.ROOT, "nowhere"))
        self.fault("required: DIR", "curve")
        self.fault("--detail steps", "steps", support.results("one"))
        self.fault("undefined", "curve", support.results("one"), "--y", "evidence_recall")

    def test_unwritable_output(self):
        run = support.results("one")
        self.fault("did you mean .png", "curve", run, "-o", "x.pgn")
        self.fault("no such folder", "curve", run, "-o", "/nowhere/x.png")

    def test_compare_needs_two(self):
        run = support.results("small")
        self.fault("exactly two variants", "compare", run, "--variant", "h2o")
        self.fault("one or two folders", "compare", run, run, run)

    def test_no_subcommand(self):
        code, out, err = support.plot()
        self.assertEqual(code, 2)
        self.assertIn("name a subcommand", err)
        self.assertIn("first steps", out)


class Help(unittest.TestCase):
    def test_teaches_with_examples(self):
        for arguments in ((), *((c,) for c in CALLS)):
            code, out, _ = support.plot(*arguments, "--help")
            self.assertEqual(code, 0)
            self.assertIn("examples:" if arguments else "first steps:", out)
            self.assertGreaterEqual(out.count("kvsim-plot"), 4)

    def test_needs_neither_pandas_nor_a_display(self):
        code = "import sys; sys.modules['pandas'] = None; from kvsim_analysis.cli import main; sys.exit(main(sys.argv[1:]))"
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "c.png")
            env = {**os.environ, "PYTHONPATH": support.PACKAGE, "DISPLAY": ""}
            done = subprocess.run(
                [sys.executable, "-c", code, "curve", support.results("one"), "-o", path],
                env=env,
                capture_output=True,
                text=True,
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue(os.path.isfile(path))


if __name__ == "__main__":
    unittest.main()
