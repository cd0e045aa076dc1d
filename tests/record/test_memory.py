"""Long answers stream to disk: while they are recorded, memory grows by the model's cache and by nothing else."""

import subprocess
import sys

import numpy as np
import torch
import transformers
from record_reference import Trace
from safetensors.torch import save_file
from tiny_models import TEXT, byte_tokenizer
from transformers import AutoModelForCausalLM

from kvsim_record.writer import TraceWriter

LAYERS, QUERY_HEADS, HEAD_DIM, HIDDEN = 3, 16, 64, 1024
SHORT, LONG = 100, 2100

# Runs in a process of its own: the peak of its resident memory is what counts.
PROGRAM = """
import resource, sys, torch
torch.set_num_threads(1)
from kvsim_record import cli
code = cli.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def peak_bytes(folder, decode, options):
    out = folder / f"{decode}.h5"
    command = [sys.executable, "-c", PROGRAM, "--model", str(folder / "model"), "--prompt", str(folder / "p.txt"), "--device", "cpu",
               *(["--ignore-eos"] if "--continue" not in options else []), "--decode", str(decode), "-o", str(out), "--quiet", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={"MALLOC_ARENA_MAX": "1", "PYTHONPATH": ":".join(p for p in sys.path if p)})
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout.split()[-1]), out


def test_memory_of_a_long_answer_grows_by_the_cache_alone(tmp_path):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(vocab_size=264, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=QUERY_HEADS,
                                      num_key_value_heads=1, head_dim=HEAD_DIM, max_position_embeddings=4096, bos_token_id=None, eos_token_id=256)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "p.txt").write_text(TEXT)
    random = np.random.default_rng(1)
    gates = {}
    for layer in range(LAYERS):
        for part, shape in {"up.weight": (8, HIDDEN), "up.bias": (8,), "down.weight": (1, 8), "bias": (1,)}.items():
            gates[f"layers.{layer}.{part}"] = torch.from_numpy(random.normal(size=shape).astype(np.float32))
    save_file(gates, str(tmp_path / "gates.safetensors"))
    options = ["--hidden", "--final-hidden", "--retention-gates", str(tmp_path / "gates.safetensors")]
    short, _ = peak_bytes(tmp_path, SHORT, options)
    long, path = peak_bytes(tmp_path, LONG, options)

    tokens = LONG - SHORT
    cache = 4 * tokens * LAYERS * 2 * HEAD_DIM
    streamed = 4 * tokens * (LAYERS * (QUERY_HEADS * HEAD_DIM + HIDDEN) + HIDDEN)  # queries, hidden states
    one_layer = 4 * (LONG + len(TEXT)) * QUERY_HEADS * HEAD_DIM
    assert streamed > 55e6 and cache + one_layer < 13e6
    # The cache is copied when it grows (twice one layer), and the digest reads in slices of 8 MiB.
    assert long - short < 2 * cache + one_layer + 12e6, f"{(long - short) / 1e6:.1f} MB more for {tokens} tokens, {streamed / 1e6:.1f} MB streamed"
    trace = Trace(path)
    assert trace.decode == LONG
    assert np.isfinite(trace.get(2, "retention")).all() and np.abs(trace.get(2, "query")[:, -1]).max() > 0


def test_a_decode_step_writes_its_own_bytes_and_not_what_lies_around_them(tmp_path):
    def written():
        return int(open("/proc/self/io", encoding="ascii").read().split("wchar: ")[1].split()[0])

    with TraceWriter(tmp_path / "t.h5") as writer:
        writer.create("/layers/000/query", (9, 4000, 64), "float16")
        row = np.ones((9, 1, 64), dtype=np.float16)
        before = written()
        for step in range(50):
            writer.write("/layers/000/query", row, (0, step, 0))
        assert written() - before < 3 * 50 * row.nbytes


def test_sensitivities_hold_one_block_at_a_time_and_go_to_the_file_layer_by_layer(tmp_path):
    """Four blocks more cost their weights and next to nothing else."""
    heads, wide, steps, samples = 16, 4096, 600, 8
    (tmp_path / "p.txt").write_text(TEXT)
    (tmp_path / "answer.txt").write_text("abcdef" * (steps // 6))
    options = ["--queries", "window:1", "--continue", str(tmp_path / "answer.txt"), "--sensitivity", str(samples)]
    peak = {}
    for layers in (2, 6):
        torch.manual_seed(3)
        config = transformers.LlamaConfig(vocab_size=264, hidden_size=64, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads,
                                          num_key_value_heads=1, head_dim=HEAD_DIM, max_position_embeddings=4096, bos_token_id=None, eos_token_id=256)
        AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path / "model")
        byte_tokenizer().save_pretrained(tmp_path / "model")
        peak[layers], path = peak_bytes(tmp_path, steps, options)
        assert Trace(path).group(layers - 1)["sensitivity"].shape == (samples, heads, steps, HEAD_DIM)
    gradients, graphs = 4 * 4 * samples * heads * steps * HEAD_DIM, 4 * 4 * steps * 3 * wide
    weights = 4 * 4 * 64 * (3 * wide + 2 * (heads + 1) * HEAD_DIM)
    assert gradients > 75e6 and graphs > 115e6 and weights < 16e6  # of the four blocks
    assert peak[6] - peak[2] < 2 * weights + 25e6, f"{(peak[6] - peak[2]) / 1e6:.1f} MB more for four blocks of {weights / 1e6:.1f} MB weights"
