"""HDF5 access that answers foreign, locked and damaged files with one clear line."""

import h5py
import numpy as np

from .errors import UserError

MAJOR = 1


class open_file:
    """Opens `path` for reading; every low-level failure inside the block becomes a UserError naming the file."""

    def __init__(self, path):
        self.path = path
        self.file = None

    def __enter__(self):
        try:
            self.file = h5py.File(self.path, "r")
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {_reason(error)}") from error
        return self.file

    def __exit__(self, kind, error, trace):
        self.file.close()
        if isinstance(error, OSError):
            raise UserError(f"cannot read {self.path}: {_reason(error)}") from error
        return False


def _reason(error):
    text = " ".join(str(error).split())
    if "truncated" in text:
        return "the file is truncated; it was not written to its end"
    if "unable to lock" in text or "already open for" in text:
        return "another program has it open for writing; wait for it to finish"
    if "signature" in text:
        return "not an HDF5 file"
    return text


def check_format(file, path, expected):
    """The root attributes as a dict, once format and version are known to be ours."""
    attributes = {k: plain(v) for k, v in file.attrs.items()}
    found = attributes.get("format")
    if found != expected:
        what = f"its format is '{found}'" if found else "it has no format attribute"
        raise UserError(f"{path} is not a {expected} file ({what})")
    version = str(attributes.get("version", ""))
    major = version.split(".")[0]
    if not major.isdigit():
        raise UserError(f"{path} has no readable version (found '{version}')")
    if int(major) != MAJOR:
        raise UserError(
            f"{path} is version {version}, this reader knows {MAJOR}.x; install the matching kvsim-analysis"
        )
    return attributes


def plain(value):
    """An HDF5 attribute as an ordinary Python value."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value


def read_column(file, name, path):
    """A whole dataset; text comes as an object array of str."""
    if name not in file or not isinstance(file[name], h5py.Dataset):
        raise UserError(f"{path} lacks the dataset /{name}")
    dataset = file[name]
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return dataset.asstr("utf-8", "replace")[:]
    return dataset[:]


def columns_of(file, group, path):
    """Names of the 1-D columns of a table in file order."""
    if group not in file:
        raise UserError(f"{path} lacks the group /{group}")
    return [k for k, v in file[group].items() if isinstance(v, h5py.Dataset)]


def read_group(file, group, path, required=()):
    """A table as a dict of equally long columns."""
    columns = {k: read_column(file, f"{group}/{k}", path) for k in columns_of(file, group, path)}
    for name in required:
        if name not in columns:
            raise UserError(f"{path} lacks the dataset /{group}/{name}")
    lengths = {len(v) for v in columns.values()}
    if len(lengths) > 1:
        raise UserError(f"{path}: the columns of /{group} differ in length ({sorted(lengths)})")
    return columns
