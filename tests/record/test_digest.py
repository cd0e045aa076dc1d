"""The digest against a plain-integer transcription of its definition, and its golden value that the C++ side shares."""

import h5py
import numpy as np
import pytest

from kvsim_record import digest

# Computed by `plain` below from the definition; the file is built by `golden`.
GOLDEN = "kvd1:81ec6c27b866332f"


def golden(path):
    with h5py.File(path, "w") as file:
        file["b/ints"] = np.arange(7, dtype="<i4")  # 28 bytes: padded
        file["a"] = np.arange(300, dtype="<f4").reshape(3, 100) * 0.5  # 1200 bytes: two blocks and a part
        file["b.half"] = np.linspace(-1, 1, 256).astype("<f2")  # 512 bytes: exactly one block; sorts before /b/ints
        file.create_dataset("empty", shape=(0, 4), dtype="<f8")
        file.create_dataset("text", data=["not", "hashed"], dtype=h5py.string_dtype())


def plain(items):
    """items: (path, bytes), sorted."""
    mask, factor = (1 << 64) - 1, 0x9FB21C651E98DF25

    def mix(state, word):
        state ^= word
        return (((state << 29) | (state >> 35)) & mask) * factor & mask

    state = 0xCBF29CE484222325
    for path, data in items:
        for byte in path.encode():
            state = (state ^ byte) * 0x100000001B3 & mask
        lanes = [(state + lane * 0x9E3779B97F4A7C15) & mask for lane in range(64)]
        padded = data + b"\0" * (-len(data) % 512)
        for i in range(0, len(padded), 8):
            lanes[i // 8 % 64] = mix(lanes[i // 8 % 64], int.from_bytes(padded[i : i + 8], "little"))
        for lane in lanes:
            state = mix(state, lane)
        state = mix(state, len(data))
    return f"kvd1:{state:016x}"


def test_golden_value(tmp_path):
    golden(tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5") as file:
        paths = ["/a", "/b.half", "/b/ints", "/empty"]
        assert digest.numeric_datasets(file) == paths
        assert digest.file_digest(file) == GOLDEN == plain([(path, file[path][()].tobytes()) for path in paths])


@pytest.mark.parametrize("size", [512, 1024, 4096])
def test_slices_of_any_size_give_the_same(size, tmp_path, monkeypatch):
    golden(tmp_path / "g.h5")
    monkeypatch.setattr(digest, "_SLICE", size)
    with h5py.File(tmp_path / "g.h5") as file:
        file_digest = digest.file_digest(file)
    assert file_digest == GOLDEN


def test_one_changed_bit_changes_it(tmp_path):
    golden(tmp_path / "g.h5")
    with h5py.File(tmp_path / "g.h5", "r+") as file:
        file["b.half"][255] = np.nextafter(np.float16(1), np.float16(0))
        assert digest.file_digest(file) != GOLDEN


def test_bfloat16_is_hashed_as_stored(run):
    _, path = run("llama", "--dtype", "bfloat16")
    with h5py.File(path) as file:
        raw = {}
        for name in digest.numeric_datasets(file):
            kind = file[name].id.get_type()
            buffer = np.empty(file[name].size * kind.get_size(), dtype=np.uint8)
            file[name].id.read(h5py.h5s.ALL, h5py.h5s.ALL, buffer, kind)
            raw[name] = buffer.tobytes()
        assert file.attrs["digest"] == plain(sorted(raw.items(), key=lambda item: item[0].encode()))
