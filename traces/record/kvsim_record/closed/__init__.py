"""The closed loop: the real model runs with the kept sets that a replay wrote (kvsim-judge)."""

FORMAT_NAME = "kvsim-closed"
FORMAT_VERSION = "1.0"
