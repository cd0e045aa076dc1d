"""How the figures look: themes, the line style of every variant, and names of metrics and units on axes."""

from collections import defaultdict
from dataclasses import dataclass

from .colors import REFERENCES, policy_color, policy_dash, policy_marker, shades

THEMES = {
    "light": {
        "page": "#ffffff",
        "ink": "#1a1a1a",
        "faint": "#6b6b6b",
        "grid": "#e4e4e4",
        "axis": "#9a9a9a",
        "references": {
            "full": "#a0a0a0",
            "oracle_static": "#3a3a3a",
            "oracle_topk": "#6e6e6e",
            "oracle_output": "#8a8a8a",
            "random": "#8a8a8a",
        },
    },
    "dark": {
        "page": "#16181d",
        "ink": "#ececec",
        "faint": "#a3a7ae",
        "grid": "#2c3038",
        "axis": "#6a6f78",
        "references": {
            "full": "#777c85",
            "oracle_static": "#e2e2e2",
            "oracle_topk": "#a9adb5",
            "oracle_output": "#8f949c",
            "random": "#8f949c",
        },
    },
}
_REFERENCE_DASHES = {
    "full": (0, (1, 1.2)),
    "oracle_static": (0, (6, 1.8)),
    "oracle_topk": (0, (6, 1.5, 1.2, 1.5)),
    "oracle_output": (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5)),
    "random": (0, (2.2, 2.2)),
}
_DASHES = ("-", (0, (4.5, 1.3)), (0, (4.5, 1.2, 1.1, 1.2)), (0, (1.3, 1.1)))

NAMES = {
    "output_error": "output error",
    "projected_error": "projected error",
    "predicted_kl": "predicted KL",
    "predicted_kl_layers": "predicted KL, by layer",
    "predicted_kl_quadratic": "predicted KL, second order",
    "predicted_kl_saturated": "predicted KL, saturated",
    "predicted_kl_linear": "predicted change, first order",
    "projected_sum": "projected errors, sum",
    "residual_error": "error against the residual stream",
    "attention_recall": "attention recall",
    "query_consistency": "query consistency",
    "set_consistency": "set consistency",
    "set_jaccard": "set Jaccard index",
    "set_mass_ratio": "set mass ratio",
    "free_consistency": "free consistency",
    "free_consistency_corrected": "free consistency, corrected",
    "window_consistency": "window consistency",
    "miss_rate": "miss rate (c = 0.9)",
    "miss_rate_50": "miss rate (c = 0.5)",
    "miss_rate_99": "miss rate (c = 0.99)",
    "evidence_recall": "evidence recall",
    "score_truth": "score truth",
    "resident_tokens": "resident tokens",
    "resident_bytes": "resident bytes",
    "resident_union_bytes": "resident bytes, distinct",
}


@dataclass(frozen=True)
class Look:
    """How one variant is drawn everywhere in a figure."""

    label: str
    color: str
    dashes: object
    marker: object
    hollow: bool
    reference: bool

    def line(self, theme, width=1.35, size=4.3):
        """Keyword arguments for a line with markers."""
        page = THEMES[theme]["page"]
        style = dict(color=self.color, linestyle=self.dashes, linewidth=width, zorder=2 if self.reference else 3)
        if self.marker:
            style.update(
                marker=self.marker,
                markersize=size * {"*": 1.6, "P": 1.3, "p": 1.2}.get(self.marker, 1.0),
                markerfacecolor=page if self.hollow else self.color,
                markeredgecolor=self.color if self.hollow else page,
                markeredgewidth=0.9 if self.hollow else 0.45,
            )
        return style


def looks(policies, labels, theme):
    """One Look per variant, given policies and labels in the order of the figure.

    The hue and marker belong to the policy; its variants go from dark to light, and change dashes and fill.
    """
    members = defaultdict(list)
    for i, policy in enumerate(policies):
        members[policy].append(i)
    out = [None] * len(labels)
    for policy, indices in members.items():
        if policy in REFERENCES:
            for i in indices:
                out[i] = Look(
                    labels[i], THEMES[theme]["references"][policy], _REFERENCE_DASHES[policy], None, False, True
                )
            continue
        for k, (i, color) in enumerate(zip(indices, shades(policy_color(policy, theme), len(indices), theme))):
            out[i] = Look(
                labels[i],
                color,
                _DASHES[(k + policy_dash(policy)) % len(_DASHES)],
                policy_marker(policy),
                bool(k // len(_DASHES) % 2),
                False,
            )
    return out


def rc(theme):
    """Matplotlib settings of a theme; text stays text in PDF, and SVG and PDF are the same bytes every time."""
    t = THEMES[theme]
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8.5,
        "axes.labelsize": 8.5,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "legend.fontsize": 7.8,
        "legend.frameon": False,
        "figure.facecolor": t["page"],
        "savefig.facecolor": t["page"],
        "axes.facecolor": t["page"],
        "text.color": t["ink"],
        "axes.labelcolor": t["ink"],
        "xtick.color": t["ink"],
        "ytick.color": t["ink"],
        "axes.edgecolor": t["axis"],
        "grid.color": t["grid"],
        "grid.linewidth": 0.6,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.minor.size": 0,
        "ytick.minor.size": 1.8,
        "lines.solid_capstyle": "round",
        "pdf.fonttype": 42,
        "svg.hashsalt": "kvsim",
        "savefig.dpi": 200,
    }


def metric_name(metric):
    """What an axis calls a metric."""
    return NAMES.get(metric, metric.replace("_", " "))


def axis_label(metric, unit="", stat="mean"):
    """An axis label with its unit, and the statistic when it is not the mean."""
    name = metric_name(metric) + ("" if stat == "mean" else f", {stat}")
    shown = {"relative": "relative L2", "ratio": "", "1": "", "-": ""}.get(unit, unit)
    return f"{name} [{shown}]" if shown else name
