#!/usr/bin/env python3
"""Compares kept sets with kvpress: each of its presses runs on the model, kvsim replays the counterpart on a recording.

    python tests/record/compare_kvpress.py                  # records a 1,000-token prompt in float32 first
    python tests/record/compare_kvpress.py --trace f32.h5 --only SnapKV

Per press one line: the share of kvpress' kept positions that kvsim keeps too, at budgets of 5, 10, 20 and 40 % of the prompt, at the
very token counts that kvpress keeps, and what the differences are, by kvpress' own scores. A tie: kvsim keeps another token of the very
same score, or of one that float32 cannot tell apart over the scores' range (torch.topk takes any of them; where a protected window or a
block of equal ranks is larger than the budget, most are such).
Rounding: the scores differ by less than 1e-3 of the layer's range. Count: kvpress kept a token more or less in that head, because it
rounds a budget otherwise. Exit code 1 where less than 99.9 % of the positions are the same or tied, or where a difference has none of
these reasons.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import h5py
import kvpress
import numpy as np
import torch
from kvpress.utils import compute_n_kept
from kvpress_kept import REASONS, Kept, differences
from kvpress_table import LEFT_OUT, PAIRS
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, logging

REPO = Path(__file__).resolve().parents[2]
RATIOS = (0.95, 0.9, 0.8, 0.6)
DEMANDED = 0.999


@dataclass
class Seen:
    """What a press is handed at one layer."""

    module: torch.nn.Module
    kwargs: dict
    keys: torch.Tensor
    values: torch.Tensor
    attention: torch.Tensor | None


class Model:
    """The model as kvpress finds it, and what its layers saw of one prompt."""

    def __init__(self, folder, ids):
        self.folder, self.ids = folder, torch.tensor([ids])
        self._seen, self._tokenizer = {}, None

    def load(self, eager: bool):
        kind = "eager" if eager else "sdpa"
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, attn_implementation=kind).eval()

    def seen(self, eager: bool) -> tuple:
        """(model, one Seen per layer), from a single pass: no press changes what a later layer sees of the prompt."""
        if eager not in self._seen:
            model, found = self.load(eager), []

            def hook(module, _, kwargs, output):
                layer = kwargs["past_key_values"].layers[module.layer_idx]
                found.append(Seen(module, kwargs, layer.keys.clone(), layer.values.clone(), output[1] if eager else None))

            hooks = [layer.self_attn.register_forward_hook(hook, with_kwargs=True) for layer in model.model.layers]
            for layer in model.model.layers:
                layer.self_attn.rotary_emb = model.model.rotary_emb
            self.run(model)
            for one in hooks:
                one.remove()
            self._seen[eager] = model, found
        return self._seen[eager]

    def plain_tokenizer(self) -> str:
        if self._tokenizer is None:
            self._tokenizer = tempfile.TemporaryDirectory()
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
            tokenizer.chat_template = None
            tokenizer.save_pretrained(self._tokenizer.name)
            shutil.copy(Path(self.folder) / "config.json", self._tokenizer.name)
        return self._tokenizer.name

    def run(self, model) -> DynamicCache:
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            # kvpress reads cache_position, which newer versions of the library hand on only when it is given.
            position = torch.arange(self.ids.shape[1])
            model(input_ids=self.ids, past_key_values=cache, cache_position=position, use_cache=True, logits_to_keep=1)
        return cache


def watch_scores(press, scores: dict, reads) -> None:
    """Keeps the scores of a press; those of chunks are put together."""
    original, parts = press.score, {}

    def score(module, *args, **kwargs):
        found = original(module, *args, **kwargs)
        seen = parts.setdefault(module.layer_idx, [])
        seen.append(found[0].double())
        if sum(part.shape[1] for part in seen) == module.kvsim_tokens:
            scores[module.layer_idx] = reads(torch.cat(seen, dim=1))
        return found

    press.score = score


def kept_rows(before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    """Positions of the rows of `after` among those of `before`; keys of different positions are different."""
    place = {row.tobytes(): i for i, row in enumerate(before.numpy())}
    assert len(place) == len(before), "two tokens have the same key"
    return np.sort(np.array([place[row.tobytes()] for row in after.numpy()], dtype=np.int64))


def collect(kept: Kept, module, before: torch.Tensor, after: torch.Tensor) -> None:
    """Adds what stands in the cache [1, Hkv, n, d] and is not masked."""
    masked = getattr(module, "masked_key_indices", None)
    for head in range(before.shape[1]):
        rows = kept_rows(before[0, head], after[0, head])
        if masked is not None:
            rows = np.setdiff1d(rows, masked[2][masked[1] == head].numpy())
        kept.sets[module.layer_idx, head] = rows
    module.masked_key_indices = None


def press_kept(pair, ratio: float, model: Model) -> Kept:
    """What kvpress keeps: its own hook, on what the layers saw."""
    kept, press = Kept(), pair.press(ratio)
    net, layers = model.seen(pair.eager)
    for one in layers:
        one.module.kvsim_tokens = one.keys.shape[2]
    if hasattr(type(press), "score"):
        watch_scores(press, kept.scores, pair.score)
    if hasattr(press, "press"):
        watch_scores(press.press, kept.inner, pair.score)
    press.post_init_from_model(net)
    for one in layers:
        layer = SimpleNamespace(keys=one.keys, values=one.values)
        cache = SimpleNamespace(layers={one.module.layer_idx: layer})
        with torch.inference_mode():
            press.forward_hook(one.module, (), one.kwargs | {"past_key_values": cache}, [None, one.attention])
        collect(kept, one.module, one.keys, layer.keys)
    return kept


def whole_kept(pair, model: Model) -> dict[float, Kept]:
    """What kvpress keeps, by ratio, where a press feeds the model by itself and evicts at the end: it runs once, and evicts once per
    ratio. It reads the tokenizer of the model's folder: here one without a chat template, as the recorded prompt has none."""
    found, press = {ratio: Kept() for ratio in RATIOS}, pair.press(RATIOS[0])
    net, layers = model.seen(False)
    zip_like = hasattr(press, "compress_post")
    evict = press.compress_post if zip_like else press.compress_cache

    def evict_at_every_ratio(*args):
        cache = press._cache if zip_like else press.cache
        whole = [(layer.keys, layer.values) for layer in cache.layers]
        for ratio, kept in found.items():
            for layer, (keys, values) in zip(cache.layers, whole):
                layer.keys, layer.values = keys, values
            press.compression_ratio = ratio
            if not zip_like:
                press.prepare_important_masks()
            evict(*args)
            for one, scores, (keys, _) in zip(layers, press.score_val[:, 0] if zip_like else press.scores, whole):
                kept.scores[one.module.layer_idx] = pair.score(scores.double())
                tokens, left = one.keys.shape[2], cache.layers[one.module.layer_idx].keys
                collect(kept, one.module, keys[:, :, :tokens], left[:, :, :tokens])  # behind them may stand a second reading

    setattr(press, "compress_post" if zip_like else "compress_cache", evict_at_every_ratio)
    net.config.name_or_path = model.plain_tokenizer()
    with torch.inference_mode(), press(net):
        model.run(net)
    return found


def kvsim_kept(kvsim: str, trace: str, spec: str, budgets: list[int], folder: Path) -> dict[int, Kept]:
    """What kvsim keeps, by budget."""
    command = [kvsim, "run", trace, "--policy", spec, "--budget", ",".join(map(str, budgets)), "--save", "kept", "--no-bounds",
               "--metrics", "output_error", "--out", str(folder), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = {}
    with h5py.File(folder / "kept.h5") as file:
        for cell, budget in enumerate(file["cells/budget_tokens"][:]):
            kept = found.setdefault(int(budget), Kept())
            for name, layer in file[f"kept/{cell}"].items():
                indices, offsets = layer["indices"][:].astype(np.int64), layer["offsets"][:].astype(np.int64)
                kv_heads = int(h5py.File(trace).attrs["num_kv_heads"])
                for head in range(kv_heads):
                    unit = 0 if len(offsets) == 2 else head
                    kept.sets[int(name), head] = indices[offsets[unit] : offsets[unit + 1]]
    return found


def compare(name: str, pair, model: Model, options, folder: Path) -> bool:
    """Prints the press' line; true when it agrees."""
    theirs = whole_kept(pair, model) if pair.whole else {ratio: press_kept(pair, ratio, model) for ratio in RATIOS}
    tokens, ours = model.ids.shape[1], {}
    choose = {"kept": lambda ratio: max(1, round(theirs[ratio].tokens_per_head())), "ratio": lambda ratio: compute_n_kept(tokens, ratio),
              "prompt": lambda ratio: tokens}[pair.budget]
    budgets = {ratio: choose(ratio) for ratio in RATIOS}
    specs = {ratio: pair.spec(ratio) if callable(pair.spec) else pair.spec for ratio in RATIOS}
    for number, spec in enumerate(dict.fromkeys(specs.values())):
        mine = {ratio: budgets[ratio] for ratio in RATIOS if specs[ratio] == spec}
        try:
            found = kvsim_kept(options.kvsim, options.trace, spec, sorted(set(mine.values())), folder / str(number))
        except RuntimeError as error:
            print(f"FAIL {name} = {spec}: {error}", flush=True)
            return False
        ours |= {ratio: found[budget] for ratio, budget in mine.items()}
    shares, why, largest, good = [], dict.fromkeys(REASONS, 0), 0.0, True
    for ratio in RATIOS:
        found, gap = differences(theirs[ratio], ours[ratio], pair.scope, pair.rounding)
        largest = max(largest, gap)
        kept = sum(len(positions) for positions in theirs[ratio].sets.values())
        same = kept - sum(found.values())
        alike = same + found["tied"] + (found["by count"] if pair.more else 0)
        good &= alike >= DEMANDED * kept and found["unexplained"] == 0
        shares.append(f"{budgets[ratio]}: {100 * same / kept:.3f} %")
        why = {reason: why[reason] + found[reason] for reason in REASONS}
    said = ", ".join(f"{count} {reason}" for reason, count in why.items() if count) or "none"
    said += f" (scores at most {largest:.1e} of their range apart)" if largest else ""
    print(f"{'ok  ' if good else 'FAIL'} {name} = {specs[RATIOS[0]]}: {', '.join(shares)}; differing positions: {said}", flush=True)
    return good


def record(folder: Path) -> Path:
    """A float32 recording of the default model on the first 1,000 tokens of the repository's own text."""
    from kvsim_record import cli, models

    text = (REPO / "tests/data/harbour.txt").read_text(encoding="utf-8")
    loaded = models.load(None, "float32", "cpu")
    offsets = loaded.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    (folder / "prompt.txt").write_text(text[: offsets[999][1]], encoding="utf-8")
    code = cli.main(["--prompt", str(folder / "prompt.txt"), "--dtype", "float32", "--device", "cpu", "--decode", "2", "--ignore-eos",
                     "--output-proj", "--second-pass", "repeat", "-o", str(folder / "trace.h5"), "--quiet"])
    if code != 0:
        raise RuntimeError("the recording failed")
    return folder / "trace.h5"


def model_of(trace: str) -> Model:
    from kvsim_record import models

    models.load(None, "float32", "cpu")  # makes the folder when it is not there yet
    folder = next(path for path in models.cache_folder().iterdir() if path.name.endswith("-float32"))
    with h5py.File(trace) as file:
        return Model(folder, file["tokens/id"][: file.attrs["prompt_len"]].tolist())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvsim", default=str(REPO / "build/kvsim"))
    parser.add_argument("--trace", help="a float32 recording of the default model, instead of making one")
    parser.add_argument("--only", default="", help="presses whose name matches this regular expression")
    options = parser.parse_args()
    logging.set_verbosity_error()
    named = {name.split(",")[0].split(" of ")[0] for name in PAIRS} | set(LEFT_OUT)
    forgotten = [name for name in kvpress.__all__ if name.endswith("Press") and name not in named | {"BasePress", "ScorerPress"}]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options.trace = options.trace or str(record(folder))
        model = model_of(options.trace)
        print(f"kvpress {version('kvpress')}, transformers {version('transformers')}, torch {torch.__version__}; {model.ids.shape[1]} tokens")
        listed = subprocess.run([options.kvsim, "list", "policies"], capture_output=True, text=True, check=True).stdout
        policies, good = {line.split()[0] for line in listed.splitlines() if line.strip()}, True
        for number, (name, pair) in enumerate(PAIRS.items()):
            spec = pair.spec(RATIOS[0]) if callable(pair.spec) else pair.spec
            if spec.partition("(")[0] not in policies:
                print(f"left out: {name}: this kvsim has no {spec.partition('(')[0]}")
            elif re.search(options.only, name):
                good &= compare(name, pair, model, options, folder / str(number))
    for name in sorted(LEFT_OUT):
        print(f"left out: {name}: {LEFT_OUT[name]}")
    for name in forgotten:
        print(f"FAIL {name}: neither compared nor left out")
    return 0 if good and not forgotten else 1


if __name__ == "__main__":
    sys.exit(main())
