"""Kept sets of kvpress and kvsim, and why they differ where they do."""

from dataclasses import dataclass, field

import numpy as np
import torch

ROUNDING = 1e-3  # of the range of the scores: float32 against double, solves of linear systems included
SAME = 2.0**-22  # of the range of the scores: float32 cannot tell them apart


@dataclass
class Kept:
    """Kept positions by (layer, KV head), and the scores [Hkv, T] that the press compared, by layer: its own, and those of
    the press that it wraps, which decide its first stage."""

    sets: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)
    inner: dict = field(default_factory=dict)

    def tokens_per_head(self) -> float:
        return sum(len(kept) for kept in self.sets.values()) / len(self.sets)


REASONS = ("tied", "by rounding", "by count", "unexplained")


def span_of(scores: torch.Tensor) -> float:
    """The range of scores, without those that only protect."""
    plain = scores[scores < scores.max()]
    return float(plain.max() - plain.min()) if len(plain) else 0.0


def differences(theirs: Kept, ours: Kept, scope: str, rounding: float = ROUNDING) -> tuple[dict[str, int], float]:
    """Positions that only kvpress keeps, by what kvpress' scores say of them: how near is something that kvsim kept instead? And the
    largest such distance, relative to the range of the scores."""
    counts, largest = dict.fromkeys(REASONS, 0), 0.0
    groups: dict = {}
    for layer, head in sorted(theirs.sets):
        groups.setdefault((layer, head) if scope == "head" else layer if scope == "layer" else None, []).append((layer, head))
    for group in groups.values():
        missing = [(*unit, t) for unit in group for t in np.setdiff1d(theirs.sets[unit], ours.sets[unit])]
        extra = [(*unit, t) for unit in group for t in np.setdiff1d(ours.sets[unit], theirs.sets[unit])]
        kinds = [{layer: kind[layer] for layer, _ in group} for kind in (theirs.scores, theirs.inner) if group[0][0] in kind]
        if not missing:
            continue
        if not kinds or not extra:
            counts["by count" if len(missing) <= len(group) else "unexplained"] += len(missing)
            continue
        gaps = np.min([nearest(scores, missing, extra) for scores in kinds], axis=0)
        for gap in gaps:
            counts["tied" if gap <= SAME else "by rounding" if gap <= rounding else "unexplained"] += 1
            largest = max(largest, float(gap))
    return counts, largest


def nearest(scores: dict, missing: list, extra: list) -> np.ndarray:
    """How far each missing position's score is from that of the nearest extra one, relative to the range of the scores."""
    value = lambda at: float(scores[at[0]][at[1], at[2]])  # noqa: E731
    instead = np.array([value(at) for at in extra])
    span = span_of(torch.cat([found.flatten() for found in scores.values()])) or 1.0
    return np.array([np.abs(instead - value(at)).min() for at in missing]) / span
