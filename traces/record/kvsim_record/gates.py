"""Retention gates: small networks that tell from a token's hidden state how long each KV head should keep it (TRIM-KV).

log beta[g] = log sigmoid(down . act(up . x + up_bias) + bias)[g], see traces/FORMAT.md, "Retention gates".
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from .errors import RecordError

_ACTIVATIONS = {"silu": functional.silu, "gelu": functional.gelu,
                "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"), "relu": functional.relu}
_PARTS = ("up.weight", "up.bias", "down.weight", "bias")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass
class Gate:
    """One layer's gate in float32, on the model's device."""

    up: torch.Tensor
    up_bias: torch.Tensor
    down: torch.Tensor
    bias: torch.Tensor
    activation: object

    def log_retention(self, hidden: torch.Tensor) -> torch.Tensor:
        """log beta [Hkv, n], at most 0, of the attention block's inputs `hidden` [n, hidden]."""
        middle = self.activation(functional.linear(hidden.float(), self.up, self.up_bias))
        return functional.logsigmoid(functional.linear(middle, self.down, self.bias)).t().contiguous()


class GateFile:
    """The arrays of a file of gates; `describe` is how a trace names it."""

    def __init__(self, name: str):
        self.path = Path(name)
        self.arrays, metadata = _read(self.path)
        self.activation = metadata.get("activation", "silu")
        if self.activation not in _ACTIVATIONS:
            raise RecordError(f"{self.path}: activation: found '{self.activation}', expected {', '.join(_ACTIVATIONS)}")
        if not any(array.endswith(".up.weight") for array in self.arrays):
            raise RecordError(f"{self.path}: holds no retention gates: no array is named layers.<l>.up.weight (see traces/FORMAT.md)")
        self.describe = f"{self.path.name} (sha256 {hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]})"

    def gate(self, layer: int, hidden: int, kv_heads: int, device) -> Gate:
        """The gate of a layer of a model with this hidden size; raises RecordError where the file does not fit it."""
        found = {part: self._array(f"layers.{layer}.{part}") for part in _PARTS}
        width = found["up.weight"].shape[0] if found["up.weight"].dim() == 2 else 0
        if not width:
            raise RecordError(f"{self.path}: layers.{layer}.up.weight: found the shape {_shape(found['up.weight'])}, expected [width, hidden]")
        expected = {"up.weight": [width, hidden], "up.bias": [width], "down.weight": [kv_heads, width], "bias": [kv_heads]}
        for part, shape in expected.items():
            array = found[part]
            if list(array.shape) != shape:
                raise RecordError(f"{self.path}: layers.{layer}.{part}: found the shape {_shape(array)}, expected {shape} for this model")
            if array.dtype not in _FLOATS:
                raise RecordError(f"{self.path}: layers.{layer}.{part}: found {array.dtype}, expected float16, bfloat16 or float32")
            if not bool(torch.isfinite(array).all()):
                raise RecordError(f"{self.path}: layers.{layer}.{part}: holds numbers that are not finite")
        tensors = [found[part].to(device=device, dtype=torch.float32) for part in _PARTS]
        return Gate(*tensors, _ACTIVATIONS[self.activation])

    def _array(self, name: str) -> torch.Tensor:
        if name not in self.arrays:
            raise RecordError(f"{self.path}: holds no array '{name}'")
        return self.arrays[name]


def _shape(array: torch.Tensor) -> str:
    return str(list(array.shape))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    try:
        return _read_npz(path) if zipfile.is_zipfile(path) else _read_safetensors(path)
    except RecordError:
        raise
    except Exception as error:  # the libraries raise errors of many kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecordError(f"{path}: is no safetensors or .npz file that can be read ({reason})") from error


def _read_safetensors(path: Path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def _read_npz(path: Path):
    arrays, metadata = {}, {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            array = file[name]
            if array.shape == ():
                metadata[name] = str(array)
            elif array.dtype == np.dtype("V2"):  # bfloat16, as ml_dtypes stores it
                arrays[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            elif array.dtype.kind in "fiub":
                arrays[name] = torch.from_numpy(np.ascontiguousarray(array))
    return arrays, metadata
