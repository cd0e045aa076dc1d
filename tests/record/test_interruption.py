"""A recording that does not finish leaves nothing that looks like a trace, whatever stopped it."""

import signal
import subprocess
import sys

import pytest
from tiny_models import TEXT

from kvsim_record import recorder, selfcheck, trace


def left(folder):
    """Files in the folder beside the prompt, hidden ones included."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != "prompt.txt")


def test_an_error_while_decoding_leaves_nothing(run, monkeypatch, capsys):
    from kvsim_record.errors import RecordError

    def fail(self, *_):
        raise RecordError("something broke")

    monkeypatch.setattr(recorder.Recorder, "decode", fail)
    code, path = run("llama")
    assert code == 2 and left(path.parent) == []
    assert "error: something broke" in capsys.readouterr().err


def test_a_failed_self_check_leaves_nothing_and_exits_with_1(run, monkeypatch, capsys):
    original = recorder.raw

    def damaged(tensor):
        data = original(tensor).copy()
        data[..., 0] *= 1.01  # one channel of every stored query is off by a hundredth
        return data

    monkeypatch.setattr(recorder, "raw", damaged)
    code, path = run("qwen3")
    assert code == 1 and left(path.parent) == []
    assert "self-check failed: layer" in capsys.readouterr().err


def test_a_failed_self_check_also_finds_damaged_values(run, monkeypatch):
    original = trace.raw
    monkeypatch.setattr(trace, "raw", lambda tensor: original(tensor.roll(1, dims=-2)))
    assert run("llama")[0] == 1


def test_the_older_trace_survives_a_failed_recording(run, monkeypatch):
    code, path = run("llama")
    before = path.read_bytes()

    def broken(*_):
        raise selfcheck.SelfCheckError("no")

    monkeypatch.setattr(trace, "check", broken)
    assert run("llama")[0] == 1 and path.read_bytes() == before and left(path.parent) == ["t.h5"]


_SLOW = """
import sys, time
from kvsim_record import cli, recorder
feed = recorder.Recorder._feed
def slow(self, ids):
    result = feed(self, ids)
    print("fed", flush=True)
    time.sleep(0.2)
    return result
recorder.Recorder._feed = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_leaves_nothing(number, code, model_folder, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(TEXT)
    process = subprocess.Popen([sys.executable, "-c", _SLOW, "--model", str(model_folder("llama")), "--device", "cpu", "--prompt", str(prompt),
                                "--decode", "500", "--ignore-eos", "-o", str(tmp_path / "t.h5")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(3):
        assert process.stdout.readline() == "fed\n"
    assert any(name.endswith(".part") for name in left(tmp_path)) and "t.h5" not in left(tmp_path)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code and left(tmp_path) == []
    assert error.strip().splitlines()[-1] == "kvsim-record: stopped; nothing was kept"


def test_a_killed_recording_leaves_no_file_under_the_final_name(model_folder, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(TEXT)
    process = subprocess.Popen([sys.executable, "-c", _SLOW, "--model", str(model_folder("llama")), "--device", "cpu", "--prompt", str(prompt),
                                "--decode", "500", "--ignore-eos", "-o", str(tmp_path / "t.h5")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "fed\n"
    process.kill()
    process.wait()
    assert not (tmp_path / "t.h5").exists()


_LIMITED = """
import resource, sys
from kvsim_record import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(model_folder, tmp_path):
    """The limit on file sizes makes writes fail midway, as a full disk does."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(TEXT)
    done = subprocess.run([sys.executable, "-c", _LIMITED, "--model", str(model_folder("llama")), "--device", "cpu", "--prompt", str(prompt),
                           "--decode", "20", "--ignore-eos", "-o", str(tmp_path / "t.h5")], capture_output=True, text=True)
    assert done.returncode == 2 and left(tmp_path) == [], done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kvsim-record: error: ") and "writing failed" in last and "Traceback" not in done.stderr


def test_too_little_room_is_found_before_anything_is_written(run, monkeypatch, capsys):
    from collections import namedtuple
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1000, 900, 100))
    code, path = run("llama")
    assert code == 2 and left(path.parent) == []
    assert "are free; use --queries window:64 or fewer --layers" in capsys.readouterr().err
