"""The budget curve that lu reads: division of shares, exact rows, the command."""

import os
import tempfile

import h5py
import numpy as np
import support
from kvsim_analysis import budget_curve

GRID = np.linspace(0.0, 1.0, 201)


def test_a_share_goes_where_it_takes_most_error_away():
    # The first head loses its error by half of its tokens, the second slowly; a third has none.
    curves = np.array([np.maximum(0, 1 - 2 * GRID), 0.5 * (1 - GRID), 0 * GRID])
    assert np.allclose(budget_curve.divide_shares(curves, 1 / 6), [0.5, 0.0, 0.0])
    assert np.allclose(budget_curve.divide_shares(curves, 1 / 3), [0.5, 0.5, 0.0])
    assert np.allclose(budget_curve.divide_shares(curves, 0.9), [1.0, 1.0, 0.7])  # the rest evenly, until a head is full


def test_a_bump_in_a_curve_is_bridged():
    bumpy = np.where(GRID < 0.5, 1.0, 0.0)  # nothing is gained before half is kept
    curves = np.array([bumpy, 0.9 * (1 - GRID)])
    shares = budget_curve.divide_shares(curves, 0.25)
    assert np.allclose(shares, [0.5, 0.0])


def test_every_row_prunes_its_percentage_exactly():
    folder = support.fresh("curve", layers=3, traces=2, budgets=[32, 128, 384, 768, 1024])
    from kvsim_analysis.pool import open_all

    source = open_all([folder])
    variant = list(source.variant_table["policy"]).index("h2o") if "h2o" in source.variant_table["policy"] else 0
    curve = budget_curve.budget_curve(source, variant)
    assert curve.shape == (99, 3, 3)
    assert curve.min() >= 0 and curve.max() <= 1
    assert np.allclose(curve.mean(axis=(1, 2)), np.arange(1, 100) / 100, atol=1e-6)
    assert (curve[49] != curve[49, 0, 0]).any()  # heads differ


def test_the_command_writes_the_file_and_explains_faults(capsys):
    folder = support.fresh("curve", layers=2, budgets=[64, 256, 1024])
    out = os.path.join(tempfile.mkdtemp(dir=support.ROOT), "curve.h5")
    from kvsim_analysis.results import load

    spec = str(load(folder).specs[0])
    assert budget_curve.main([folder, "--variant", spec, "-o", out]) == 0
    with h5py.File(out) as file:
        assert file["curve"].shape == (99, 2, 3)
        assert file["curve"].attrs["variant"] == spec
    capsys.readouterr()
    assert budget_curve.main([folder, "--variant", "nobody", "-o", out]) == 2
    message = capsys.readouterr().err
    assert message.startswith("budget_curve: no variant 'nobody'") and message.count("\n") == 1
