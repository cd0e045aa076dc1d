"""kvsim-judge as a command: what it continues, chooses, leaves out and refuses."""

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from record_reference import Trace
from replay_folder import drawn, write_replay
from tiny_models import byte_tokenizer, config
from transformers import AutoModelForCausalLM

from kvsim_record.closed import choice, session
from kvsim_record.closed.kept import Replay
from kvsim_record.closed.model import Judge
from kvsim_record.errors import Stopped


def test_a_second_call_adds_what_is_missing_and_a_third_runs_nothing(folder, model_folder, judge, batches, monkeypatch, capsys):
    assert judge(folder, model_folder("llama"), "--policies", "full,mine_query", "-o", str(folder / "some.h5")) == 0
    assert judge(folder, model_folder("llama")) == 0
    shutil.copy(folder / "some.h5", folder / "closed2.h5")
    batches.clear()
    assert judge(folder, model_folder("llama"), "-o", str(folder / "closed2.h5")) == 0 and len(batches) == 4
    with h5py.File(folder / "closed.h5") as whole, h5py.File(folder / "closed2.h5") as continued:
        assert whole["cells/variant"][:].tolist() == continued["cells/variant"][:].tolist()
        assert np.array_equal(whole["steps/kl"][:], continued["steps/kl"][:])
    batches.clear()
    monkeypatch.setattr(session.models, "load", lambda *_: pytest.fail("nothing is left to run"))
    before = (folder / "closed.h5").read_bytes()
    assert judge(folder, model_folder("llama")) == 0 and batches == []
    assert (folder / "closed.h5").read_bytes() == before and "every cell is finished already" in capsys.readouterr().err


def test_what_was_finished_when_a_signal_came_is_kept(folder, model_folder, judge, batches, monkeypatch, capsys):
    counted = Judge.run

    def stop(self, last, cells):
        if len(batches) == 2:
            raise Stopped(15)
        return counted(self, last, cells)

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "run", stop)
        assert judge(folder, model_folder("llama")) == 143
    assert capsys.readouterr().err.strip().splitlines()[-1] == "kvsim-judge: stopped; what was finished is kept, the same command continues"
    with h5py.File(folder / "closed.h5") as closed:
        assert len(closed["cells/variant"]) == 2
    assert [entry.name for entry in folder.iterdir() if entry.name.endswith(".part")] == []
    batches.clear()
    assert judge(folder, model_folder("llama")) == 0 and len(batches) == 4


def test_a_cell_whose_sets_have_changed_runs_again(folder, model_folder, judge, batches, capsys):
    assert judge(folder, model_folder("llama")) == 0
    with h5py.File(folder / "closed.h5") as closed:
        before = closed["steps/kl"][:]
    with h5py.File(folder / "kept.h5", "r+") as kept:
        kept["kept/1/000/indices"][0] = int(kept["kept/1/000/indices"][0]) ^ 1
    batches.clear()
    assert judge(folder, model_folder("llama")) == 0 and len(batches) == 1
    assert "mine_query(b=2) at 20 tokens: kept.h5 has changed; it runs again" in capsys.readouterr().err
    with h5py.File(folder / "closed.h5") as closed:
        assert [bool(np.array_equal(a, b)) for a, b in zip(before, closed["steps/kl"][:])] == [True, False, True, True, True, True]


def test_another_recording_of_the_same_name_runs_again_and_a_changed_one_is_refused(folder, run, recorded, model_folder, judge, batches, capsys, tmp_path):
    moved = tmp_path / "moved" / "llama.h5"
    moved.parent.mkdir()
    code, other = run("llama", "--sensitivity", "1", name="llama.h5")  # the same tokens, another digest
    assert code == 0 and judge(folder, model_folder("llama")) == 0
    with h5py.File(folder / "results.h5", "r+") as results:
        results["traces/path"][0] = str(moved)
    shutil.copy(other, moved)
    assert judge(folder, model_folder("llama")) == 2
    assert "has changed since the replay" in capsys.readouterr().err
    assert judge(folder, model_folder("llama"), "--trace", str(moved)) == 2
    assert "none of the run's recordings (llama) has this content" in capsys.readouterr().err
    assert judge(folder, model_folder("llama"), "--trace", str(recorded("llama"))) == 0
    with h5py.File(folder / "results.h5", "r+") as results:
        results["traces/digest"][0] = Trace(moved).attrs["digest"]
    batches.clear()
    assert judge(folder, model_folder("llama")) == 0 and len(batches) == 6
    assert "its cells run again" in capsys.readouterr().err


def test_selection_by_policy_variant_and_budget(recorded, model_folder, tmp_path, judge, random, capsys):
    trace = Trace(recorded("llama"))
    one = lambda: {layer: drawn(random, "kv", 2, trace.prompt, 9) for layer in trace.layers}  # noqa: E731
    cells = [(0, spec, budget, one(), {"output_error": error}) for spec, errors in
             {"a(x=1,y=[p,q(2)])": (3, 3), "a(x=2,y=[p,q(2)])": (1, 4), "b": (2, 2), "oracle_static": (0, 0)}.items() for budget, error in zip((9, 10), errors)]
    write_replay(tmp_path / "run", [recorded("llama")], cells)

    def judged(*options):
        out = tmp_path / "out.h5"
        out.unlink(missing_ok=True)
        assert judge(tmp_path / "run", model_folder("llama"), "-o", str(out), *options) == 0
        with h5py.File(out) as closed:
            return list(zip(closed["cells/variant"].asstr()[:], closed["cells/budget_tokens"][:].tolist()))

    assert judged("--policies", "b,oracle_static", "--budgets", "10") == [("b", 10), ("oracle_static", 10)]
    assert judged("--variant", "a(x=2)") == [("a(x=2,y=[p,q(2)])", 9), ("a(x=2,y=[p,q(2)])", 10)]
    assert judged("--variant", "a(y=[p,q(2)])", "--budgets", "9") == [("a(x=1,y=[p,q(2)])", 9), ("a(x=2,y=[p,q(2)])", 9)]
    assert judged("--top", "1") == [("a(x=2,y=[p,q(2)])", 9), ("b", 10)]
    assert "--top 1: by output_error" in capsys.readouterr().err
    assert judged("--quiet", "--top", "2", "--by", "output_error", "--budgets", "10") == [("a(x=1,y=[p,q(2)])", 10), ("b", 10)]


def test_the_best_are_those_by_predicted_kl_over_all_traces(recorded, tmp_path, random):
    first = recorded("llama")
    second = tmp_path / "other.h5"
    shutil.copy(first, second)
    one = lambda: {layer: drawn(random, "kv", 2, Trace(first).prompt, 9) for layer in Trace(first).layers}  # noqa: E731
    metrics = {"output_error": "lower", "predicted_kl": "lower"}

    def chosen(predicted, others):
        cells = [(trace, spec, 9, one(), {"output_error": error, "predicted_kl": kl})
                 for trace, table in enumerate((predicted, others)) for spec, (error, kl) in table.items()]
        write_replay(tmp_path / "run", [first, second], cells, metrics)
        with Replay(tmp_path / "run") as replay:
            by = choice.usual_metric(replay)
            return by, {cell.variant for cell in choice.choose(replay, [], [], [], 1, by)}

    nan = float("nan")
    both = {"a": (1, 3), "b": (2, 1), "oracle_static": (0, 0)}
    assert chosen(both, both) == ("predicted_kl", {"b"})
    assert chosen(both, {"a": (1, nan), "b": (2, nan)}) == ("output_error", {"a"})  # the other recording lacks what it needs
    assert chosen(both, {"a": (1, 3)}) == ("predicted_kl", {"a"})  # b was refused there


def test_what_masks_cannot_show_is_left_out_by_name(recorded, model_folder, tmp_path, judge, random, capsys):
    trace = Trace(recorded("llama"))
    one = lambda: {layer: drawn(random, "kv", 2, trace.prompt, 9) for layer in trace.layers}  # noqa: E731
    specs = {"think": "changes keys or values", "decode:streaming_llm(shift=true)": "moves keys", "oracle_topk": "changes from step to step"}
    write_replay(tmp_path / "run", [recorded("llama")], [(0, spec, 9, None if spec == "oracle_topk" else one(), {}) for spec in [*specs, "snapkv"]])
    with h5py.File(tmp_path / "run" / "kept.h5", "r+") as kept:
        for cell, entries in enumerate(["changed", "moved"]):
            for layer in kept[f"kept/{cell}"].values():
                layer.attrs["entries"] = entries
    assert judge(tmp_path / "run", model_folder("llama")) == 0
    error = capsys.readouterr().err
    for spec, reason in specs.items():
        assert any(f"left out: {spec}: " in line and reason in line for line in error.splitlines()), spec
    with h5py.File(tmp_path / "run" / "closed.h5") as closed:
        assert closed["cells/variant"].asstr()[:].tolist() == ["snapkv"]
    assert judge(tmp_path / "run", model_folder("llama"), "--policies", "decode:streaming_llm") == 2
    assert "no cell of kept.h5 that can be judged fits: moves keys" in capsys.readouterr().err
    assert judge(tmp_path / "run", model_folder("llama"), "--policies", "snapkv") == 0
    assert "left out" not in capsys.readouterr().err  # of what was asked for
    with h5py.File(tmp_path / "run" / "kept.h5", "r+") as kept:
        del next(iter(kept["kept/2"].values())).attrs["entries"]
    assert judge(tmp_path / "run", model_folder("llama")) == 2
    assert "does not say whether its entries are as recorded" in capsys.readouterr().err


def test_without_a_terminal_it_says_how_far_it_is(folder, model_folder, judge, batches, monkeypatch, capsys):
    monkeypatch.setattr("kvsim_record.progress._LINE_EVERY", 0.0)
    assert judge(folder, model_folder("llama")) == 0
    assert any(line.startswith("kvsim-judge: judge: 2 of 6 cells, about ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("options,message", [
    (["--by", "output_error"], "--by: belongs to --top N"),
    (["--top", "2", "--by", "nonsense"], "--by nonsense: the run has no such metric; it has output_error"),
    (["--policies", "snapkv"], "--policies snapkv: no cell of kept.h5 that can be judged fits"),
    (["--budgets", "77"], "--budgets 77: no cell of kept.h5 that can be judged fits"),
    (["--variant", "mine_kv(a=2)"], "no cell of kept.h5 that can be judged fits"),
    (["--device", "tpu"], "auto, cpu, cuda"),
    (["-o", "nowhere/closed.h5"], "nowhere: no such folder; make it or choose another -o"),
    (["-o", "closed.csv"], "-o closed.csv: names the HDF5 file"),
    (["--trace", "no.h5"], "--trace no.h5: cannot be read as HDF5"),
])
def test_wrong_options_are_one_line(options, message, folder, model_folder, judge, capsys):
    assert judge(folder, model_folder("llama"), *options) == 2 and not (folder / "closed.h5").exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kvsim-judge: error: ") and message in error


def test_missing_and_foreign_files_are_named(folder, model_folder, judge, capsys, tmp_path):
    def refused(message, *options, folder=folder):
        assert judge(folder, model_folder("llama"), *options) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]

    refused("kept.h5: no such file; replay again with --save kept", folder=tmp_path)
    (tmp_path / "other.h5").write_text("precious")
    refused("other.h5: exists and cannot be read", "-o", str(tmp_path / "other.h5"))
    assert (tmp_path / "other.h5").read_text() == "precious"
    shutil.copy(folder / "kept.h5", tmp_path / "other.h5")
    refused("exists and is not a kvsim-closed file", "-o", str(tmp_path / "other.h5"))
    with h5py.File(folder / "results.h5", "r+") as results:
        results["traces/path"][0] = "elsewhere.h5"
    refused("elsewhere.h5: no such file; say where the recording of llama is with --trace FILE")
    (folder / "results.h5").unlink()
    refused("results.h5: no such file; let the replay finish")


def test_another_model_is_refused(folder, model_folder, judge, capsys, tmp_path):
    def refused(model, message):
        assert judge(folder, model) == 2 and not (folder / "closed.h5").exists()
        assert message in capsys.readouterr().err.strip().splitlines()[-1]

    refused(model_folder("qwen3"), "the model's keys differ from the recorded ones by")  # the same shapes
    refused(model_folder("multi_query"), "has keys of another shape than the model's")
    refused(None, ": say where it is with --model")
    wide = tmp_path / "wide"
    torch.manual_seed(1)
    settings = config("llama")
    settings.vocab_size, settings.pad_token_id, settings.eos_token_id = 50, None, None
    AutoModelForCausalLM.from_config(settings).float().save_pretrained(wide)
    byte_tokenizer().save_pretrained(wide)
    refused(wide, "is none of the model's 50; name the model of the recording with --model")


def test_results_in_another_precision_are_not_mixed(folder, model_folder, judge, capsys):
    assert judge(folder, model_folder("llama"), "--policies", "full") == 0
    assert judge(folder, model_folder("llama"), "--dtype", "bfloat16") == 2
    assert "give --dtype float32, or another -o" in capsys.readouterr().err


def test_help_teaches_with_examples_and_does_not_load_torch():
    code = ("import sys; from kvsim_record.closed import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
            "print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("False") and "kvsim-judge runs/essay --top 5" in done.stdout and "Exit codes:" in done.stdout


def test_the_package_has_the_command():
    project = (Path(__file__).parents[2] / "traces" / "record" / "pyproject.toml").read_text()
    assert 'kvsim-judge = "kvsim_record.closed.cli:main"' in project


def test_a_trace_whose_name_has_slashes_is_continued(folder, model_folder, judge, batches, capsys):
    for name, column in (("results.h5", "traces/name"), ("kept.h5", "cells/trace")):
        with h5py.File(folder / name, "r+") as file:
            file[column][:] = np.array(["./runs/a/llama.h5"] * len(file[column]), dtype=object)
    assert judge(folder, model_folder("llama"), "--policies", "full") == 0
    batches.clear()
    assert judge(folder, model_folder("llama")) == 0 and len(batches) == 5
    with h5py.File(folder / "closed.h5") as closed:
        assert len(closed["full/./runs/a/llama.h5/entropy"]) == closed["steps/kl"].shape[1]
    assert judge(folder, model_folder("llama")) == 0 and "every cell is finished already" in capsys.readouterr().err


def rewrite(path, name, change):
    """Replaces a dataset by what `change` makes of it; None removes it."""
    with h5py.File(path, "r+") as file:
        values, attributes = file[name][()], dict(file[name].attrs)
        del file[name]
        if (made := change(values)) is not None:
            file[name] = made
            file[name].attrs.update(attributes)


@pytest.mark.parametrize("name,change", [
    ("steps/kl", lambda v: v[:1]), ("steps/kl", lambda v: v[:, :3]), ("steps/kl", lambda v: v[0]), ("steps/top1_agree", lambda v: v[:, :3]),
    ("cells/variant", lambda v: v[:1]), ("cells/trace", lambda v: None), ("cells/kept", lambda v: np.arange(len(v))),
    ("full/llama/entropy", lambda v: v[:3]), ("full/llama/entropy", lambda v: v[0]),
])
def test_a_damaged_closed_h5_is_one_line(name, change, folder, model_folder, judge, capsys):
    assert judge(folder, model_folder("llama"), "--policies", "full,mine_kv") == 0
    rewrite(folder / "closed.h5", name, change)
    assert judge(folder, model_folder("llama")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "closed.h5: exists and cannot be read (" in error and "remove it or choose another -o" in error


@pytest.mark.parametrize("file,name,change,message", [
    ("kept.h5", "kept/0/000/indices", lambda v: v[:-1], "do not divide its"),
    ("kept.h5", "kept/0/000/offsets", lambda v: v + np.uint64(1), "do not divide its"),
    ("kept.h5", "kept/0/000/indices", lambda v: v[::-1], "not ascending positions of the prompt"),
    ("kept.h5", "kept/0/000/indices", lambda v: v + np.uint32(1000), "not ascending positions of the prompt"),
    ("kept.h5", "kept/0/000/indices", lambda v: None, "damaged"),
    ("kept.h5", "kept/3/000/evicted_at", lambda v: v[:, :-1], "evicted_at is [2, "),
    ("kept.h5", "kept/3/000/evicted_at", lambda v: v[:1], "evicted_at is [1, "),
    ("kept.h5", "kept/3/000/evicted_at", lambda v: v[0], "evicted_at is ["),
    ("kept.h5", "cells/variant", lambda v: v[:-1], "damaged"),
    ("kept.h5", "cells/budget_tokens", lambda v: None, "damaged"),
    ("results.h5", "summary/trace", lambda v: v + 7, "damaged"),
    ("results.h5", "summary/variant", lambda v: v[:-1], "damaged"),
    ("results.h5", "variants/spec", lambda v: np.arange(len(v)), "damaged"),
])
def test_a_damaged_replay_is_one_line(file, name, change, message, folder, model_folder, judge, capsys):
    rewrite(folder / file, name, change)
    assert judge(folder, model_folder("llama")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kvsim-judge: error: ") and message in error and "replay it again" in error


@pytest.mark.parametrize("name,value", [("steps/kl", np.nan), ("steps/kl", np.inf), ("steps/kl", -1.0), ("steps/top1_agree", 7)])
def test_a_cell_whose_figures_make_no_sense_runs_again(name, value, folder, model_folder, judge, batches, capsys):
    assert judge(folder, model_folder("llama")) == 0
    with h5py.File(folder / "closed.h5", "r+") as closed:
        before = closed[name][:]
        closed[name][1, 2] = value
    batches.clear()
    assert judge(folder, model_folder("llama")) == 0 and len(batches) == 1
    assert "mine_query(b=2) at 20 tokens: closed.h5 holds values that are no divergence; it runs again" in capsys.readouterr().err
    with h5py.File(folder / "closed.h5") as closed:
        assert np.array_equal(closed[name][:], before)


def test_texts_of_another_length_are_made_anew(folder, model_folder, judge, batches):
    def texts(length):
        assert judge(folder, model_folder("llama"), "--policies", "mine_kv,mine_query", "--generate", str(length)) == 0
        with h5py.File(folder / "closed.h5") as closed:
            found = [closed["generated/0"], closed["generated/1"], closed["full/llama/generated"]]
            assert [text.attrs["tokens"] for text in found] == [length] * 3
            return [text.asstr()[()] for text in found]

    short, long = texts(3), texts(9)
    assert short != long and all(b.startswith(a[:2]) for a, b in zip(short, long))
    batches.clear()
    assert texts(9) == long and batches == []
