"""Element types of a trace: raw 16-bit storage of torch tensors, bfloat16 included, without any conversion."""

import h5py
import numpy as np
import torch

from .errors import RecordError

TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# Largest tolerated error of the self-check: a few roundings of the model's own 16-bit arithmetic
# (unit round-off 2^-8 for bfloat16, 2^-11 for float16), and of float32 sums over long prompts.
SELFCHECK_BOUNDS = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 2e-5}


def bfloat16_type() -> h5py.h5t.TypeID:
    """HDF5 float of 1 sign, 8 exponent and 7 mantissa bits in two bytes: h5py and h5dump read it as numbers."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def file_type(name: str) -> h5py.h5t.TypeID:
    """The HDF5 type that stores `float16`, `bfloat16`, `float32`, `float64`, `int32` or `int64`."""
    if name == "bfloat16":
        return bfloat16_type()
    return h5py.h5t.py_create(np.dtype(name).newbyteorder("<"), logical=True)


def name_of(dtype: torch.dtype) -> str:
    for name, candidate in TORCH_DTYPES.items():
        if candidate == dtype:
            return name
    raise RecordError(f"the model computes in {dtype}, which a trace cannot hold; use --dtype bfloat16, float16 or float32")


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's bits as a contiguous NumPy array; bfloat16 becomes uint16 with the same bits."""
    tensor = tensor.detach().to("cpu").contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
