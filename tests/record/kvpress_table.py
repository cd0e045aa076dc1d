"""kvpress' presses, their counterparts here, and those that are left out, with the reason. One line per comparison."""

from dataclasses import dataclass, field
from typing import Callable

import kvpress as k
import torch

# What a press shares its budget over: a head's tokens, a layer's, or the model's.
HEAD, LAYER, MODEL = "head", "layer", "model"


@dataclass
class Pair:
    """`press(r)` removes the fraction r; `spec` is what kvsim is asked for. `eager` presses need attention matrices, `whole`
    ones run the model themselves. `score` turns kvpress' own scores [Hkv, T] into those that its selection compares. `by_ratio`:
    the policy rounds like kvpress and wants the budget that the ratio means, not the tokens that are left of it."""

    press: Callable
    spec: str
    scope: str = HEAD
    eager: bool = False
    whole: bool = False
    by_ratio: bool = False
    score: Callable = field(default=lambda scores: scores)


def chunk_means(length: int):
    """Scores of whole chunks, the same for every head, as ChunkKVPress compares them."""
    def means(scores):
        total = scores.sum(dim=0)
        parts = [part.mean().expand(len(part)) for part in total.split(length)]
        return torch.cat(parts).expand(scores.shape[0], -1)
    return means


PAIRS = {
    "KnormPress": Pair(lambda r: k.KnormPress(r), "knorm"),
    "KeyDiffPress": Pair(lambda r: k.KeyDiffPress(r), "keydiff"),
    "StreamingLLMPress": Pair(lambda r: k.StreamingLLMPress(r), "streaming_llm"),
    "LagKVPress": Pair(lambda r: k.LagKVPress(r), "lagkv"),
    "CURPress": Pair(lambda r: k.CURPress(r), "cur"),
    "SnapKVPress": Pair(lambda r: k.SnapKVPress(r), "snapkv"),
    "SnapKVPress, window 16, kernel 9": Pair(lambda r: k.SnapKVPress(r, window_size=16, kernel_size=9), "snapkv(window=16,kernel=9)"),
    "TOVAPress": Pair(lambda r: k.TOVAPress(r), "tova"),
    "ObservedAttentionPress": Pair(lambda r: k.ObservedAttentionPress(r), "observed_attention", eager=True),
    "ExpectedAttentionPress": Pair(lambda r: k.ExpectedAttentionPress(r), "expected_attention"),
    "ExpectedAttentionPress, no covariance, no norms": Pair(
        lambda r: k.ExpectedAttentionPress(r, use_covariance=False, use_vnorm=False), "expected_attention(covariance=false,vnorm=false)"),
    "PyramidKVPress": Pair(lambda r: k.PyramidKVPress(r), "pyramidkv"),
    "PyramidKVPress, window 8, beta 4": Pair(lambda r: k.PyramidKVPress(r, window_size=8, beta=4), "pyramidkv(window=8,beta=4)"),
    "AdaKVPress of SnapKV": Pair(lambda r: k.AdaKVPress(k.SnapKVPress(r)), "ada(score=snapkv)", LAYER),
    "AdaKVPress of ExpectedAttention": Pair(lambda r: k.AdaKVPress(k.ExpectedAttentionPress(r, epsilon=1e-2)),
                                            "ada(score=expected_attention(epsilon=0.01))", LAYER),
    "ChunkPress of Knorm": Pair(lambda r: k.ChunkPress(k.KnormPress(r), chunk_length=300), "chunk(score=knorm,length=300)", by_ratio=True),
    "ChunkKVPress of SnapKV": Pair(lambda r: k.ChunkKVPress(k.SnapKVPress(r)), "chunkkv(score=snapkv)", LAYER, score=chunk_means(20), by_ratio=True),
}

LEFT_OUT = {
    "RandomPress": "draws random numbers",
    "LeverageScorePress": "draws a random sketch",
    "CompactorPress": "draws a random sketch",
    "CAMPress": "acts while decoding and draws random numbers",
    "QFilterPress": "needs filters from elsewhere",
    "ExpectedAttentionStatsPress": "needs statistics from elsewhere",
    "DuoAttentionPress": "needs a head pattern from elsewhere",
    "LUKVPress": "needs a budget curve from elsewhere",
    "KVzapPress": "needs trained weights from elsewhere",
    "FastKVzipPress": "needs trained gates from elsewhere",
    "RestoreKVPress": "needs trained weights from elsewhere",
    "KVgradPress": "needs the model's gradients",
    "EntropyGatedChunkKVPress": "no counterpart: newer than the reference",
    "ThinKPress": "removes channels, not tokens",
    "MergingPress": "keeps what its inner press keeps and changes values",
    "KeyRerotationPress": "keeps what its inner press keeps and turns keys",
    "ComposedPress": "runs presses one after another",
    "DMSPress": "a threshold, not a budget",
    "DecodingPress": "acts while decoding",
    "CompressionRatioDecodingPress": "acts while decoding",
    "PrefillDecodingPress": "acts while decoding",
}
