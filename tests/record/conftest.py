"""Tiny random-weight models of several architectures, saved as folders, and a way to record with them."""

import importlib
import signal

import pytest


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


MISSING = [name for name in ("torch", "transformers", "h5py", "kvsim_record") if not importable(name)]

if not MISSING:
    import numpy as np
    import torch
    from record_reference import Trace
    from replay_folder import cells_of, write_replay
    from tiny_models import TEXT, byte_tokenizer, config
    from transformers import AutoModelForCausalLM

    from kvsim_record import cli
    from kvsim_record.closed import cli as judge_cli
    from kvsim_record.closed.model import Judge

    torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much on a busy machine
else:
    TEXT = ""


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; deselect with -m 'not slow'")


class LeftOut(pytest.Module):
    """A test file that cannot even be imported without the recorder's packages."""

    def collect(self):
        pytest.skip(f"needs {', '.join(MISSING)}: ./check --record installs them", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return LeftOut.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Function: kind -> folder of a tiny float32 model with a byte tokenizer."""
    made = {}

    def make(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(config(kind)).float()
            for name, weight in model.named_parameters():
                if "q_norm" in name or "k_norm" in name:
                    weight.data += 2.0  # normalised queries and keys are short: make their attention peaky too
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return make


def _record(folder, directory, options, text, decode, name):
    prompt = directory / "prompt.txt"
    prompt.write_text(text, encoding="utf-8")
    source = [] if "--chat" in options else ["--prompt", str(prompt)]
    length = [] if decode is None else ["--decode", str(decode)]
    end = [] if {"--continue", "--respect-eos"} & set(options) else ["--ignore-eos"]
    options = [option for option in options if option != "--respect-eos"]
    path = directory / name
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        return cli.main(["--model", str(folder), "--device", "cpu", "-o", str(path), *source, *length, *end, *options]), path
    finally:
        for number, handler in kept:
            signal.signal(number, handler)


@pytest.fixture
def run(tmp_path, model_folder):
    """Function: (kind, *options, text=...) -> (exit code, path of the trace); runs the command in this process."""

    def call(kind, *options, text=TEXT, decode=12, name="t.h5"):
        return _record(model_folder(kind), tmp_path, options, text, decode, name)

    return call


@pytest.fixture(scope="session")
def recorded(model_folder, tmp_path_factory):
    """Function: kind -> path of a full recording of TEXT with 12 decoded tokens, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            code, made[kind] = _record(model_folder(kind), tmp_path_factory.mktemp("full"), (), TEXT, 12, f"{kind}.h5")
            assert code == 0
        return made[kind]

    return get


@pytest.fixture
def judge(monkeypatch):
    """Function: (folder, model folder, *options) -> exit code of the command, run in this process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return lambda folder, model, *options: judge_cli.main([str(folder), "--device", "cpu", *(["--model", str(model)] if model else []), *options])


@pytest.fixture
def random():
    return np.random.default_rng(3)


@pytest.fixture
def folder(recorded, tmp_path, random):
    """A replay of the tiny llama with six cells."""
    write_replay(tmp_path / "run", [recorded("llama")], cells_of(Trace(recorded("llama")), random, (6, 2)))
    return tmp_path / "run"


@pytest.fixture
def batches(monkeypatch):
    """What was run: the number of cells of each batch; one cell at a time."""
    seen = []
    original = Judge.run

    def counted(self, last, cells):
        seen.append(cells)
        return original(self, last, cells)

    monkeypatch.setattr(Judge, "run", counted)
    monkeypatch.setattr(Judge, "cells_at_once", lambda self: 1)
    return seen
