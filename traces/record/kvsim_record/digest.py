"""The digest of a trace: a 64-bit hash over all its numeric datasets, the same that `kvsim trace check` computes."""

import h5py
import numpy as np

PREFIX = "kvd1:"

_MASK = (1 << 64) - 1
_OFFSET_BASIS = 0xCBF29CE484222325  # FNV-1a, 64 bits
_FNV_PRIME = 0x100000001B3
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, splitmix64's increment
_MULTIPLIER = 0x9FB21C651E98DF25  # rrmxmx's multiplier
_ROTATION = 29
_LANES = 64
_BLOCK = 8 * _LANES  # bytes that give every lane one word
_SLICE = 16384 * _BLOCK  # bytes held in memory at a time (8 MiB)


def _rotate(value: int) -> int:
    return ((value << _ROTATION) | (value >> (64 - _ROTATION))) & _MASK


def _fold(state: int, word: int) -> int:
    return (_rotate(state ^ word) * _MULTIPLIER) & _MASK


def _hash_path(state: int, path: str) -> int:
    for byte in path.encode("utf-8"):
        state = ((state ^ byte) * _FNV_PRIME) & _MASK
    return state


class DatasetHash:
    """Hashes one dataset's raw bytes, handed over in pieces of any size."""

    def __init__(self, state: int):
        self._state = state
        self._lanes = np.array([(state + lane * _GOLDEN) & _MASK for lane in range(_LANES)], dtype=np.uint64)
        self._rest = b""
        self._length = 0

    def add(self, data: bytes) -> None:
        self._length += len(data)
        if self._rest:
            data = self._rest + data
        whole = len(data) - len(data) % _BLOCK
        self._mix(data[:whole])
        self._rest = data[whole:]

    def finish(self) -> int:
        """The state after this dataset: the last block padded with zeros, the lanes folded, then the length."""
        if self._rest:
            self._mix(self._rest.ljust(_BLOCK, b"\0"))
        state = self._state
        for lane in self._lanes:
            state = _fold(state, int(lane))
        return _fold(state, self._length)

    def _mix(self, data: bytes) -> None:
        words = np.frombuffer(data, dtype="<u8").reshape(-1, _LANES)
        lanes = self._lanes
        high = np.empty_like(lanes)
        up, down, factor = np.uint64(_ROTATION), np.uint64(64 - _ROTATION), np.uint64(_MULTIPLIER)
        for row in words:
            np.bitwise_xor(lanes, row, out=lanes)
            np.left_shift(lanes, up, out=high)
            np.right_shift(lanes, down, out=lanes)
            np.bitwise_or(lanes, high, out=lanes)
            np.multiply(lanes, factor, out=lanes)


def numeric_datasets(file: h5py.File) -> list[str]:
    """Absolute paths of all integer and floating-point datasets, sorted by their bytes."""
    paths: list[str] = []

    def visit(name: str, item) -> None:
        if isinstance(item, h5py.Dataset) and item.id.get_type().get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
            paths.append("/" + name)

    file.visititems(visit)
    return sorted(paths, key=lambda path: path.encode("utf-8"))


def raw_slices(dataset: h5py.Dataset):
    """The dataset's bytes as stored, in order, in slices of bounded size (rows of the last axes at a time)."""
    kind = dataset.id.get_type()
    item = kind.get_size()
    shape = dataset.shape
    if dataset.size == 0:
        return
    if shape == ():
        buffer = np.empty(item, dtype=np.uint8)
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, buffer, kind)
        yield buffer.tobytes()
        return
    yield from _raw_below(dataset, kind, item, (), shape)


def _raw_below(dataset, kind, item, index, shape):
    rest = shape[len(index):]
    row = item * int(np.prod(rest[1:], dtype=np.int64))
    if row > _SLICE:
        for i in range(rest[0]):
            yield from _raw_below(dataset, kind, item, index + (i,), shape)
        return
    step = max(1, _SLICE // row)
    for begin in range(0, rest[0], step):
        count = min(step, rest[0] - begin)
        start = index + (begin,) + (0,) * (len(rest) - 1)
        extent = (1,) * len(index) + (count,) + rest[1:]
        space = dataset.id.get_space()
        space.select_hyperslab(start, extent)
        buffer = np.empty(count * row, dtype=np.uint8)
        dataset.id.read(h5py.h5s.create_simple((count * row // item,)), space, buffer, kind)
        yield buffer.tobytes()


def digest_of(path: str, data: bytes) -> str:
    """The digest of a file that holds nothing but one dataset with these raw bytes."""
    dataset = DatasetHash(_hash_path(_OFFSET_BASIS, path))
    dataset.add(data)
    return f"{PREFIX}{dataset.finish():016x}"


def file_digest(file: h5py.File) -> str:
    """The digest of an open trace, e.g. `kvd1:0123456789abcdef`. Reads every numeric dataset once, in slices."""
    state = _OFFSET_BASIS
    for path in numeric_datasets(file):
        dataset = DatasetHash(_hash_path(state, path))
        for data in raw_slices(file[path]):
            dataset.add(data)
        state = dataset.finish()
    return f"{PREFIX}{state:016x}"
