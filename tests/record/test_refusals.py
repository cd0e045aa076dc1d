"""What the format cannot hold, and wrong use: one line with the reason, exit code 2, no file."""

import subprocess
import sys

import h5py
import pytest
import torch
import transformers as t
from tiny_models import byte_tokenizer
from transformers import AutoModelForCausalLM

_SMALL = dict(vocab_size=264, hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
_GROUPED = _SMALL | dict(intermediate_size=48, num_key_value_heads=2)


def _models():
    return {
        "learned sink logits": lambda: t.GptOssConfig(**_GROUPED, head_dim=16, num_local_experts=2, num_experts_per_tok=1),
        "latent attention": lambda: t.DeepseekV3Config(
            **_SMALL, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=2, num_experts_per_tok=1, kv_lora_rank=8,
            q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1, first_k_dense_replace=2),
        "ALiBi": lambda: t.BloomConfig(vocab_size=264, hidden_size=48, n_layer=2, n_head=4),
        "uses ALiBi": lambda: t.FalconConfig(**_SMALL, alibi=True),
        "through the library's": lambda: t.GPTJConfig(vocab_size=264, n_embd=48, n_layer=2, n_head=4, rotary_dim=8),
        "does not attend causally": lambda: t.Llama4TextConfig(
            **_GROUPED, intermediate_size_mlp=48, head_dim=16, num_local_experts=2, attention_chunk_size=8, no_rope_layers=[1, 0]),
        "nothing can be recorded": lambda: t.MambaConfig(vocab_size=264, hidden_size=48, num_hidden_layers=2),
    }


@pytest.mark.parametrize("reason", _models())
def test_a_model_that_does_not_fit_is_refused_with_its_reason(reason, tmp_path, capsys):
    folder = tmp_path / "model"
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(_models()[reason]()).float().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    from kvsim_record import cli
    prompt = tmp_path / "p.txt"
    prompt.write_text("A text of some length, so that chunks show.")
    out = tmp_path / "t.h5"
    assert cli.main(["--model", str(folder), "--prompt", str(prompt), "--decode", "4", "-o", str(out), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kvsim-record: error: ") and reason in error
    assert not out.exists()


@pytest.mark.parametrize("options", [["--second-pass", "repeat"], ["--sensitivity", "2"], ["--lookahead", "2", "--lookahead-budget", "40"]])
def test_passes_on_the_cache_alone_are_refused_where_some_layers_keep_another_state(options, tmp_path, capsys):
    folder = tmp_path / "model"
    settings = _GROUPED | dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"])
    AutoModelForCausalLM.from_config(t.Lfm2Config(**settings)).float().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    from kvsim_record import cli
    prompt, out = tmp_path / "p.txt", tmp_path / "t.h5"
    prompt.write_text("A text of some length, so that a first pass has something to evict.")
    base = ["--model", str(folder), "--prompt", str(prompt), "--decode", "4", "-o", str(out), "--device", "cpu", "--ignore-eos"]
    assert cli.main([*base, *options]) == 2 and not out.exists()
    assert "some layers of this model keep another state; record without them" in capsys.readouterr().err
    assert cli.main(base) == 0


@pytest.mark.parametrize("options,message", [
    (["--layers", "0,7"], "--layers: 7 is not a layer of this model (0..2)"),
    (["--layers", "2..1"], "runs backwards"),
    (["--layers", "x"], "expected whole numbers and ranges"),
    (["--queries", "window:0"], "--queries window:0: all, or window:N with N above zero"),
    (["--queries", "last"], "all, or window:N"),
    (["--queries", "window:5000"], "the prompt has only"),
    (["--output-proj", "1", "--layers", "0"], "layer 1 is not among the recorded layers"),
    (["--split", "a:b:c"], "the prompt has 1 part(s), not 3"),
    (["--temperature", "3"], "need --sample"),
    (["--lookahead-budget", "64"], "need --lookahead"),
    (["--lookahead", "4", "--lookahead-budget", "32"], "needs at least 33 tokens"),
    (["--lookahead", "4", "--lookahead-policy", "h2o"], "expected snapkv(window=32,kernel=7,pool=max), streaming_llm(sinks=4) or full"),
    (["--lookahead", "4", "--lookahead-policy", "full(3)"], "no parameter '3'; it has none"),
    (["--lookahead", "4", "--lookahead-policy", "snapkv", "--lookahead-policy", "snapkv(16)"], "there is a pass snapkv-128 already"),
    (["--lookahead", "4", "--lookahead-policy", "snapkv(windows=3)"], "no parameter 'windows'"),
    (["--device", "tpu"], "auto, cpu, cuda"),
    (["--instruct", "--chat", "x.json"], "give either --prompt FILE or --chat FILE"),
])
def test_wrong_options_are_one_line(options, message, run, capsys, tmp_path):
    if "--chat" in options:
        options = [*options, "--prompt", "y.txt"]
    code, path = run("llama", *options)
    assert code == 2 and not path.exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kvsim-record: error: ") and message in error


def test_a_prompt_longer_than_the_model_was_made_for_is_refused(run, capsys):
    assert run("llama", text="word " * 500)[0] == 2
    assert "the model was made for 2048" in capsys.readouterr().err


def test_missing_files_and_models_are_named(run, tmp_path, capsys):
    from kvsim_record import cli
    out = str(tmp_path / "t.h5")
    assert cli.main(["--prompt", str(tmp_path / "no.txt"), "-o", out]) == 2
    assert "no.txt: cannot be read as text" in capsys.readouterr().err
    (tmp_path / "p.txt").write_text("text")
    assert cli.main(["--model", str(tmp_path / "no.gguf"), "--prompt", str(tmp_path / "p.txt"), "-o", out]) == 2
    assert "no.gguf: no such file" in capsys.readouterr().err


def test_another_file_is_never_overwritten_but_an_older_trace_is(run, tmp_path, capsys):
    (tmp_path / "t.h5").write_text("precious")
    assert run("llama")[0] == 2 and (tmp_path / "t.h5").read_text() == "precious"
    assert "exists and is not a trace" in capsys.readouterr().err
    (tmp_path / "t.h5").unlink()
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.attrs["format"] = "kvsim-trace"
    assert run("llama")[0] == 0
    assert "version" in h5py.File(tmp_path / "t.h5").attrs


def test_unknown_options_are_wrong_use():
    done = subprocess.run([sys.executable, "-m", "kvsim_record", "--prompts", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "kvsim-record: error" in done.stderr


def test_help_teaches_with_groups_and_examples_and_does_not_load_torch():
    code = "import sys; from kvsim_record import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("False")
    for part in ("what to record:", "examples:", "--queries WHICH", "kvsim-record --chat turns.json", "Exit codes:"):
        assert part in done.stdout
