"""Turns what the user named (metrics, policies, variants, budgets, layers) into what the results hold."""

import numpy as np

from .colors import REFERENCES
from .errors import UserError, unknown
from .specs import matches, parse, short_labels

QUANTILES = {"higher": ("mean", "p50", "p5", "p1", "min"), "lower": ("mean", "p50", "p95", "p99", "max")}


class Variants:
    """The variants of a source: policies, labels, and which of them are references."""

    def __init__(self, source):
        self.specs = [str(s) for s in source.specs]
        self.policies = [str(p) for p in source.variant_table["policy"]]
        self.ids = [str(v) for v in source.variant_table.get("variant_id", self.specs)]
        self.labels = short_labels(self.specs)
        self.references = [i for i, p in enumerate(self.policies) if p in REFERENCES]
        self.others = [i for i, p in enumerate(self.policies) if p not in REFERENCES]

    def find(self, text):
        """Indices of the variants that `text` names: a label, an id, a whole spec, or a spec with some parameters."""
        exact = [i for i in range(len(self.specs)) if text in (self.specs[i], self.labels[i], self.ids[i])]
        if exact:
            return exact
        try:
            pattern = parse(text)
        except UserError:
            raise unknown("variant", text, self.labels) from None
        found = [i for i, s in enumerate(self.specs) if matches(pattern, _parsed(s))]
        if not found:
            raise unknown("variant", text, self.labels)
        return found

    def choose(self, policies=(), variants=(), references=True):
        """Indices in the order of the run: those named (all, when none are), and the references."""
        wanted = set()
        for policy in policies or ():
            if policy not in self.policies:
                raise unknown("policy", policy, list(dict.fromkeys(self.policies)))
            wanted.update(i for i, p in enumerate(self.policies) if p == policy)
        for text in variants or ():
            wanted.update(self.find(text))
        if not policies and not variants:
            wanted.update(self.others)
        if references:
            wanted.update(self.references)
        chosen = sorted(wanted, key=lambda i: (i in self.references, i))
        if not chosen:
            raise UserError("nothing to draw: this run holds references only, and --no-references leaves them out")
        return chosen

    def one(self, text):
        """The index of the only variant that `text` names."""
        found = self.find(text)
        if len(found) > 1:
            raise UserError(f"'{text}' names {len(found)} variants: " + ", ".join(self.labels[i] for i in found[:8]))
        return found[0]


def _parsed(text):
    try:
        return parse(text)
    except UserError:
        return None


def metric_info(source, metric):
    """(unit, direction) of a metric; raises UserError with the nearest name for an unknown one."""
    names = list(source.metric_names)
    if metric not in names:
        raise unknown("metric", metric, names)
    i = names.index(metric)
    unit = source.metric_table.get("unit")
    return ("" if unit is None else str(unit[i])), str(source.metric_table["direction"][i])


def in_summary(source, metric):
    """True if the run has the metric in /summary."""
    columns = source.column_names["summary"]
    return metric in source.metric_names and (f"{metric}_mean" in columns or metric in columns)


def summary_column(source, metric, stat):
    """Name of the /summary column of a metric's statistic."""
    columns = source.column_names["summary"]
    _, direction = metric_info(source, metric)
    if f"{metric}_{stat}" in columns:
        return f"{metric}_{stat}"
    if metric in columns and stat == "mean":
        return metric  # metrics of the whole trace have one value
    kept = [s for s in QUANTILES.get(direction, ("mean",)) if f"{metric}_{s}" in columns]
    if not kept:
        raise UserError(f"/summary of {source.path} holds nothing of {metric}")
    raise UserError(f"{metric} ({direction} is better) has no {stat}; there are: {', '.join(kept)}")


def budget(source, text=None):
    """A budget in the results as (label, mask over /rows). Without a text: the one nearest to an eighth of the prompt."""
    tokens = source.column("rows", "budget_tokens")
    requests = source.column("rows", "budget_request")
    if text is None:
        prompts = np.asarray(source.trace_table["prompt"], float)
        choices = np.unique(tokens)
        inside = choices[choices < prompts.max()]
        choices = inside if len(inside) else choices
        pick = choices[np.argmin(np.abs(np.log(np.maximum(choices, 1) / max(prompts.mean() / 8, 1))))]
        return f"{pick} tokens", tokens == pick
    names = [str(b) for b in source.budgets]
    if text in names:
        mask = requests == names.index(text)
        if len(np.unique(tokens[mask])) == 1 or text.endswith("%"):
            return text if text.endswith("%") else f"{text} tokens", mask
    if text.isdigit() and (tokens == int(text)).any():
        return f"{text} tokens", tokens == int(text)
    there = sorted({int(t) for t in np.unique(tokens)})
    near = sorted(there, key=lambda b: abs(b - int(text)))[:1] if text.isdigit() else []
    hint = f"the nearest is {near[0]}" if near else "there are: " + ", ".join(map(str, there[:16]))
    raise UserError(f"no budget '{text}' here; {hint}")


def layers(source, wanted):
    """The layers asked for (all, when none are), each checked to exist."""
    there = sorted({int(v) for v in np.unique(source.column("rows", "layer"))})
    for layer in wanted or ():
        if layer not in there:
            raise unknown("layer", layer, there, limit=64)
    return sorted(set(wanted)) if wanted else there
