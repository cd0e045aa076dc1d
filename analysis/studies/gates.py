"""Writes seeded retention gates for a model that has no trained ones: the shape of a real file, none of its knowledge."""

import sys

import numpy as np
from safetensors.numpy import save_file

LAYERS, HIDDEN, KV_HEADS, WIDTH = 30, 576, 3, 64  # SmolLM2-135M

random = np.random.default_rng(1)
arrays = {}
for layer in range(LAYERS):
    arrays[f"layers.{layer}.up.weight"] = (random.normal(size=(WIDTH, HIDDEN)) / HIDDEN**0.5).astype(np.float32)
    arrays[f"layers.{layer}.up.bias"] = np.zeros(WIDTH, np.float32)
    arrays[f"layers.{layer}.down.weight"] = (4 * random.normal(size=(KV_HEADS, WIDTH)) / WIDTH**0.5).astype(np.float32)
    arrays[f"layers.{layer}.bias"] = np.full(KV_HEADS, 5.0, np.float32)
save_file(arrays, sys.argv[1])
