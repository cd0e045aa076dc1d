"""kvpress' presses, their counterparts here, and those that are left out, with the reason. One line per comparison."""

from dataclasses import dataclass, field
from typing import Callable, Literal
from unittest import mock

import kvpress as k
import torch
from kvpress_kept import ROUNDING

# What a press shares its budget over: a head's tokens, a layer's, or the model's.
HEAD, LAYER, MODEL = "head", "layer", "model"


@dataclass
class Pair:
    """`press(r)` removes the fraction r; `spec`, or `spec(r)`, is what kvsim is asked for. `eager` presses need attention
    matrices, `whole` ones run the model themselves. `score` turns kvpress' own scores [Hkv, T] into those that its selection
    compares. `rounding`: how far apart, relative to their range, two scores may be by rounding. `more`: kvpress keeps a token where
    its budget leaves none, beyond the total, which kvsim keeps exactly. `budget`: the tokens that kvpress kept; what the ratio means, for policies that round like kvpress; or the prompt, for
    those whose size is their own."""

    press: Callable
    spec: str | Callable
    scope: str = HEAD
    eager: bool = False
    whole: bool = False
    budget: Literal["kept", "ratio", "prompt"] = "kept"
    score: Callable = field(default=lambda scores: scores)
    rounding: float = ROUNDING
    more: bool = False


def chunk_means(length: int):
    """Scores of whole chunks, the same for every head, as ChunkKVPress compares them."""
    def means(scores):
        total = scores.sum(dim=0)
        parts = [part.mean().expand(len(part)) for part in total.split(length)]
        return torch.cat(parts).expand(scores.shape[0], -1)
    return means


def unsketched(kind):
    """The press with the identity in place of its random sketch."""
    def identity(*shape, **more):
        return torch.eye(shape[-1], **more).expand(shape) * shape[-1] ** 0.5

    class Exact(kind):
        def score(self, *args, **kwargs):
            with mock.patch.object(torch, "randn", identity):
                return super().score(*args, **kwargs)

    return lambda r, **more: Exact(r, sketch_dimension=64, **more)  # 64 channels


def finch(r, **more):
    press = k.FinchPress(r, rerotate_keys=False, **more)
    press.window_size = 64  # otherwise found from a delimiter in the prompt
    return press


def per_layer(r):
    """Even layers keep three times as much as odd ones."""
    kept = 1 - r
    return k.PerLayerCompressionPress(k.KnormPress(), [1 - kept * share - 1e-9 for share in (1.5, 0.5)] * 15)


PAIRS = {
    "KnormPress": Pair(lambda r: k.KnormPress(r), "knorm"),
    "KeyDiffPress": Pair(lambda r: k.KeyDiffPress(r), "keydiff"),
    "StreamingLLMPress": Pair(lambda r: k.StreamingLLMPress(r), "streaming_llm"),
    "LagKVPress": Pair(lambda r: k.LagKVPress(r), "lagkv", rounding=1 / 127),  # scores are ranks in blocks of 128
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
    "ChunkPress of Knorm": Pair(lambda r: k.ChunkPress(k.KnormPress(r), chunk_length=300), "chunk(score=knorm,length=300)", budget="ratio"),
    "ChunkKVPress of SnapKV": Pair(lambda r: k.ChunkKVPress(k.SnapKVPress(r)), "chunkkv(score=snapkv)", LAYER, score=chunk_means(20), budget="ratio"),
    "BlockPress of KeyDiff": Pair(lambda r: k.BlockPress(k.KeyDiffPress(r)), "block(score=keydiff)"),
    "FinchPress, window 64": Pair(finch, "finch(window=64)"),
    "CapPress": Pair(lambda r: k.CapPress(r), "capkv"),
    "NonCausalAttnPress": Pair(lambda r: k.NonCausalAttnPress(r), "noncausal"),
    "LeverageScorePress, exact": Pair(unsketched(k.LeverageScorePress), "leverage"),
    "CompactorPress, exact": Pair(unsketched(k.CompactorPress), "compactor"),
    "CriticalKVPress of SnapKV": Pair(lambda r: k.CriticalKVPress(k.SnapKVPress(r)), "critical(score=snapkv)"),
    "CriticalAdaKVPress of SnapKV": Pair(lambda r: k.CriticalAdaKVPress(k.SnapKVPress(r)),
                                         "critical(score=ada(score=snapkv,alpha=0.2),safe=0.2)", LAYER),
    "PerLayerCompressionPress of Knorm": Pair(per_layer, "per_layer(score=knorm,shares=[" + ",".join(["3", "1"] * 15) + "])"),
    "SimLayerKVPress, 200 recent tokens": Pair(lambda r: k.SimLayerKVPress(lazy_threshold=r / 2 + 0.2, n_recent=200),
                                               lambda r: f"simlayer(threshold={r / 2 + 0.2:.17g},recent=200)", budget="prompt"),
    "KVzipPress": Pair(lambda r: k.KVzipPress(r), "kvzip", MODEL, whole=True),
    "KVzipPress, layerwise": Pair(lambda r: k.KVzipPress(r, layerwise=True), "kvzip(layerwise=true)", LAYER, whole=True),
    "KVzipPress, plus": Pair(lambda r: k.KVzipPress(r, kvzip_plus_normalization=True), "kvzip(plus=true)", MODEL, whole=True),
    "KVComposePress": Pair(lambda r: k.KVComposePress(compression_ratio=r), "kvcompose", MODEL, whole=True, more=True),
    "KVComposePress, unstructured": Pair(lambda r: k.KVComposePress(compression_ratio=r, structured=False), "kvcompose(structured=false)",
                                         MODEL, whole=True),
}

LEFT_OUT = {
    "RandomPress": "draws random numbers",
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
