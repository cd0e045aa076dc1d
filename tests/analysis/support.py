"""What the tests of the figures share: results folders made once, the command in-process, the texts of a figure."""

import atexit
import contextlib
import io
import os
import shutil
import sys
import tempfile

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "analysis")
sys.path.insert(0, PACKAGE)

import matplotlib
from matplotlib.legend import Legend

import synthetic
from kvsim_analysis import cli, output, style

ROOT = tempfile.mkdtemp(prefix="kvsim-analysis-")
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
_made = {}
KINDS = {
    "standard": dict(detail=True, kept=True),
    "one": dict(specs=[synthetic.POLICIES[1]]),
    "five": dict(specs=[synthetic.POLICIES[i] for i in (1, 3, 4, 5, 11)], traces=6, layers=4),
    "many": dict(specs=synthetic.MANY, layers=4),
    "percent": dict(
        specs=[synthetic.POLICIES[i] for i in (1, 4)],
        traces=3,
        layers=2,
        budgets=["5%", "10%", "20%", "40%", "64"],
        detail=True,
    ),
    "small": dict(specs=["h2o", "tova", "knorm"], layers=2, budgets=[64, 128, 256], detail=True),
    "after": dict(skill_shift=0.03),
}


def results(kind):
    """A results folder of one of KINDS, written once per test run; tests must not change it."""
    if kind not in _made:
        _made[kind] = synthetic.write_results(os.path.join(ROOT, kind), **KINDS[kind])
    return _made[kind]


def fresh(name, **options):
    """A results folder that a test may spoil."""
    return synthetic.write_results(
        os.path.join(tempfile.mkdtemp(dir=ROOT), name), **{"layers": 2, "specs": synthetic.POLICIES[:4], **options}
    )


def plot(*arguments):
    """Runs kvsim-plot in this process: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as leave:
            code = leave.code
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def drawn(*arguments):
    """The Figure that kvsim-plot would write, drawn once, while the theme's settings are in force."""
    caught = []
    original = output.write
    output.write = lambda figure, path, extension: caught.append(figure)
    theme = arguments[arguments.index("--theme") + 1] if "--theme" in arguments else "light"
    try:
        with matplotlib.rc_context(style.rc(theme)):
            code, _, err = plot(*arguments)
            assert code == 0, err
            caught[0].canvas.draw()
            yield caught[0]
    finally:
        output.write = original


def texts(figure):
    """[(text, bounding box in pixels)] of everything written on a figure, ticks outside the axes left out."""
    found = list(figure.texts)
    for legend in figure.findobj(Legend):
        found += [*legend.get_texts(), legend.get_title()]
    for ax in figure.axes:
        found += [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_visible()]
            found += [t.label2 for t in axis.get_major_ticks() if low <= t.get_loc() <= high and t.label2.get_visible()]
    renderer = figure.canvas.get_renderer()
    return [(t.get_text(), t.get_window_extent(renderer)) for t in found if t.get_text().strip() and t.get_visible()]


def overlaps(figure):
    """Pairs of texts whose boxes meet, and texts that leave the page."""
    boxes = texts(figure)
    bad = [
        (a, b)
        for i, (a, p) in enumerate(boxes)
        for b, q in boxes[i + 1 :]
        if p.x0 + 0.5 < q.x1 and q.x0 + 0.5 < p.x1 and p.y0 + 0.5 < q.y1 and q.y0 + 0.5 < p.y1
    ]
    page = figure.bbox
    return bad + [
        (a, "edge of the page") for a, p in boxes if p.x0 < 0 or p.y0 < 0 or p.x1 > page.width or p.y1 > page.height
    ]
