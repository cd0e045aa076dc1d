#!/usr/bin/env python3
"""Draws the curves of tests/bench/growth: processor time over rankings and tokens, with a straight line beside them.

    .venv/bin/python tests/bench/growth_figure.py curves.json growth.png
"""
import json
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


def panel(axes, name, points):
    sizes = sorted(int(size) for size in points)
    costs = [statistics.median(points[str(size)]) for size in sizes]
    low = [min(points[str(size)]) for size in sizes]
    high = [max(points[str(size)]) for size in sizes]
    axes.fill_between(sizes, low, high, alpha=0.25, linewidth=0)
    axes.plot(sizes, costs, marker="o", markersize=3, linewidth=1.2, label="measured (median, range)")
    slope = (costs[-1] - costs[0]) / (sizes[-1] - sizes[0])
    straight = [costs[0] + slope * (size - sizes[0]) for size in sizes]
    axes.plot(sizes, straight, linestyle="--", linewidth=0.8, color="0.5", label="straight line, first to last")
    axes.set_xscale("log", base=2 if name == "tokens" else 10)
    axes.set_yscale("log")
    axes.set_xlabel(name)
    axes.grid(True, which="major", linewidth=0.3)


def main():
    with open(sys.argv[1]) as file:
        drawn = json.load(file)
    figure, both = pyplot.subplots(1, 2, figsize=(6.4, 2.4), dpi=100)
    for axes, (name, points) in zip(both, drawn["curves"].items()):
        panel(axes, name, points)
    both[0].set_ylabel("processor time, s")
    both[0].legend(fontsize=7, frameon=False)
    figure.suptitle(f"16 budgets, one thread, {drawn['machine']}", fontsize=8)
    figure.tight_layout()
    figure.savefig(sys.argv[2])


if __name__ == "__main__":
    main()
