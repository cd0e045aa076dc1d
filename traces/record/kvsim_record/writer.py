"""Streams a trace into a temporary HDF5 file beside its destination; only a finished trace gets the final name."""

import contextlib
import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from . import FORMAT_NAME, FORMAT_VERSION
from .digest import file_digest
from .dtypes import file_type
from .errors import RecordError

_COPY_BYTES = 32 << 20
_SIEVE_BYTES = 1
# HDF5 1.10 must be able to read the file, and tensors begin at whole cache lines.
_SETTINGS = {"libver": ("earliest", "v110"), "alignment_threshold": 4096, "alignment_interval": 64}


def check_destination(path: Path, needed: int) -> None:
    """Refuses a destination that cannot be written, that is another kind of file, or that has too little room."""
    folder = path.parent
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder; make it or choose another -o")
    if path.is_dir():
        raise RecordError(f"{path}: is a folder; -o names the trace file itself")
    if path.exists() and not _is_trace(path):
        raise RecordError(f"{path}: exists and is not a trace; it is left alone, choose another -o")
    if not os.access(folder, os.W_OK):
        raise RecordError(f"{folder}: not writable; choose another -o")
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RecordError(f"{folder}: the trace needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free; "
                          "use --queries window:64 or fewer --layers")


def _is_trace(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            kind = file.attrs.get("format")
    except OSError:
        return False
    return kind == FORMAT_NAME


def set_attributes(item, attributes: dict) -> None:
    for name, value in attributes.items():
        if isinstance(value, bool) or isinstance(value, (int, np.integer)):
            item.attrs.create(name, np.int64(value))
        elif isinstance(value, (float, np.floating)):
            item.attrs.create(name, np.float64(value))
        else:
            item.attrs.create(name, str(value), dtype=h5py.string_dtype("utf-8"))


def _new_file(path: Path) -> h5py.File:
    """An empty file whose writes go to the disk as they are: with HDF5's default, every new row of a head, 128 bytes of one
    decode step, would write the 64 KiB around it."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_V110)
    access.set_alignment(_SETTINGS["alignment_threshold"], _SETTINGS["alignment_interval"])
    access.set_sieve_buf_size(_SIEVE_BYTES)
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, fapl=access))


class TraceWriter:
    """Owns the temporary file. Use as a context manager: leaving it without `commit` removes the file."""

    def __init__(self, path: Path):
        self.path = path
        self.part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._kinds: dict[str, str] = {}
        try:
            self.file = _new_file(self.part)
        except OSError as error:
            raise RecordError(f"{path}: cannot be written ({error})") from error

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()
        self.part.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the file up. What HDF5 still wants to write goes to memory: after a write error, as on a full disk, the
        library would fail again while closing, and crash."""
        if self.file is None:
            return
        file, self.file = self.file, None
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            elsewhere = os.memfd_create("kvsim-record") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
            os.dup2(elsewhere, file.id.get_vfd_handle())
            os.close(elsewhere)
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            file.close()

    def reserve(self, size: int) -> None:
        """Takes the room for the whole trace at once, so that a full disk shows now and not after the model has run."""
        with open(self.part, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def create(self, path: str, shape, kind: str) -> None:
        """Makes a contiguous dataset of element type `kind` (see dtypes.file_type) that `write` fills."""
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_layout(h5py.h5d.CONTIGUOUS)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        space = h5py.h5s.create_simple(tuple(int(n) for n in shape))
        h5py.h5d.create(self.file.id, path.encode(), file_type(kind), space, settings, links)
        self._kinds[path] = kind

    def write(self, path: str, data: np.ndarray, start=None) -> None:
        """Writes raw elements (as `dtypes.raw` gives them) at offset `start`, by default the whole dataset."""
        dataset = self.file[path].id
        if data.size == 0:
            return
        data = np.ascontiguousarray(data)
        space = dataset.get_space()
        space.select_hyperslab(tuple(start) if start is not None else (0,) * data.ndim, data.shape)
        dataset.write(h5py.h5s.create_simple(data.shape), space, data, file_type(self._kinds[path]))

    def put(self, path: str, data: np.ndarray, kind: str) -> None:
        """Creates a dataset and writes all of it."""
        self.create(path, data.shape, kind)
        self.write(path, np.asarray(data, dtype=None if kind == "bfloat16" else kind))

    def put_strings(self, path: str, texts: list[str]) -> None:
        # HDF5's strings end at a NUL, so that character is shown by its symbol.
        data = np.array([text.replace("\0", "\u2400") for text in texts], dtype=object)
        self.file.create_dataset(path, data=data, dtype=h5py.string_dtype("utf-8"))

    def attributes(self, path: str, values: dict) -> None:
        set_attributes(self.file.require_group(path), values)

    def shrink(self, shapes: dict[str, tuple], size: int) -> None:
        """Cuts datasets to the leading part of the given shape, by copying into a new file (early end of text)."""
        self.reopen()
        smaller = TraceWriter.__new__(TraceWriter)
        smaller.path, smaller._kinds = self.path, {}
        smaller.part = self.part.with_name(self.part.name + "2")
        smaller.file = _new_file(smaller.part)
        try:
            smaller.reserve(size)
            for path, kind in self._kinds.items():
                shape = shapes.get(path, self.file[path].shape)
                smaller.create(path, shape, kind)
                _copy(self.file[path], smaller, path, tuple(shape))
        except BaseException:
            smaller.__exit__()
            raise
        self.close()
        os.replace(smaller.part, self.part)
        smaller.part = self.part
        self.file, self._kinds = smaller.file, smaller._kinds

    def commit(self, attributes: dict) -> str:
        """Adds the digest and the attributes that make the file a trace, syncs it and gives it its final name."""
        digest = file_digest(self.file)
        set_attributes(self.file, attributes | {"digest": digest, "format": FORMAT_NAME, "version": FORMAT_VERSION})
        self.file.close()
        self.file = None
        with open(self.part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)
        return digest

    def reopen(self) -> None:
        """Closes the file and opens it again, so that what is read next comes from what was really written."""
        self.file.flush()
        size = self.file.id.get_filesize()
        self.file.close()
        os.truncate(self.part, size)  # gives back what was reserved and not needed
        self.file = h5py.File(self.part, "r+", **_SETTINGS)


def _copy(source: h5py.Dataset, target: TraceWriter, path: str, shape: tuple) -> None:
    kind = source.id.get_type()
    element = np.dtype({2: "u2", 4: "u4", 8: "u8"}[kind.get_size()])
    row = int(np.prod(shape[1:], dtype=np.int64)) * element.itemsize
    step = max(1, _COPY_BYTES // max(1, row))
    for begin in range(0, shape[0], step):
        extent = (min(step, shape[0] - begin),) + shape[1:]
        start = (begin,) + (0,) * (len(shape) - 1)
        buffer = np.empty(extent, dtype=element)
        space = source.id.get_space()
        space.select_hyperslab(start, extent)
        source.id.read(h5py.h5s.create_simple(extent), space, buffer, kind)
        target.write(path, buffer, start)
