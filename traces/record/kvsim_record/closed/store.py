"""closed.h5 and closed.csv: what the closed loop found, written whole each time, so that a stopped run is continued."""

import csv
import io
import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import h5py
import numpy as np

from .. import __version__
from ..errors import RecordError
from ..writer import set_attributes
from . import FORMAT_NAME, FORMAT_VERSION
from .kept import DAMAGE, reason, text, word

NO_STEP = 255  # of top1_agree, where a shorter trace has no such step
_COLUMNS = ["trace", "policy", "variant", "budget_tokens", "kl", "kl_p95", "top1_agreement", "log_likelihood_change", "steps"]


@dataclass
class Judged:
    """One cell: per decode step KL(full || evicted) in nats, whether both have the same likeliest token, and the log-likelihood of the
    recorded next token (NaN at the last step). `kept` stands for the sets that were judged."""

    trace: str
    policy: str
    variant: str
    budget_tokens: int
    kept: str
    kl: np.ndarray
    agree: np.ndarray
    likelihood: np.ndarray
    text: str | None = None
    text_tokens: int = 0  # how many were asked for

    @property
    def key(self) -> tuple:
        return self.trace, self.variant, self.budget_tokens

    @property
    def sound(self) -> bool:
        """Whether these are divergences, of which single precision may leave a rounding error below 0, and answers of yes or no."""
        return bool(np.isfinite(self.kl).all() and (self.kl >= -1e-3).all() and np.isin(self.agree, (0, 1)).all())


@dataclass
class FullRun:
    """The full cache of one trace: entropy and log-likelihood per step; `layers` were masked, `keys_error` is the largest relative
    difference between the model's keys and the trace's."""

    digest: str
    entropy: np.ndarray
    likelihood: np.ndarray
    layers: list[int]
    num_layers: int
    keys_error: float
    text: str | None = None
    text_tokens: int = 0


@dataclass
class Closed:
    """What closed.h5 holds."""

    model: str
    dtype: str
    seed: int
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    full: dict[str, FullRun] = field(default_factory=dict)
    cells: dict[tuple, Judged] = field(default_factory=dict)

    def write(self, path: Path, order: list[tuple]) -> None:
        """Writes both files, cells in the order of `order`; each appears whole or not at all."""
        place = {key: i for i, key in enumerate(order)}
        cells = sorted(self.cells.values(), key=lambda cell: place[cell.key])
        _replace(path, lambda part: self._write_tables(part, cells))
        table = _csv(cells, self.full).encode()
        _replace(path.with_suffix(".csv"), lambda part: part.write_bytes(table))

    def _write_tables(self, part: Path, cells: list[Judged]) -> None:
        strings = h5py.string_dtype("utf-8")
        with h5py.File(part, "w", libver=("earliest", "v110")) as file:
            set_attributes(file, {"format": FORMAT_NAME, "version": FORMAT_VERSION, "tool_version": __version__, "created": self.created,
                                  "model": self.model, "dtype": self.dtype, "seed": self.seed, "layers_masked": self._layers()})
            for name in ("trace", "policy", "variant", "kept"):
                file.create_dataset(f"cells/{name}", data=np.array([getattr(cell, name) for cell in cells], dtype=object), dtype=strings)
            file["cells/budget_tokens"] = np.array([cell.budget_tokens for cell in cells], dtype=np.int64)
            longest = max((len(cell.kl) for cell in cells), default=0)
            for name, attribute, kind, nothing in (("kl", "kl", np.float64, np.nan), ("top1_agree", "agree", np.uint8, NO_STEP),
                                                   ("log_likelihood", "likelihood", np.float64, np.nan)):
                table = np.full((len(cells), longest), nothing, dtype=kind)
                for row, cell in zip(table, cells):
                    row[: len(cell.kl)] = getattr(cell, attribute)
                file[f"steps/{name}"] = table
            for trace, run in self.full.items():
                file[f"full/{trace}/entropy"], file[f"full/{trace}/log_likelihood"] = run.entropy, run.likelihood
                set_attributes(file[f"full/{trace}"], {"digest": run.digest, "layers_masked": _list(run.layers), "num_layers": run.num_layers,
                                                       "keys_error": run.keys_error})
                _write_text(file, f"full/{trace}/generated", run)
            for number, cell in enumerate(cells):
                _write_text(file, f"generated/{number}", cell)

    def _layers(self) -> str:
        """Of all traces, where they agree."""
        found = {_list(run.layers) for run in self.full.values()}
        return found.pop() if len(found) == 1 else "" if not found else "see /full"


def read(path: Path) -> Closed | None:
    """What an earlier run left; None where there is nothing."""
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r") as file:
            if word(file, "format") != FORMAT_NAME or not word(file, "version").startswith("1."):
                raise RecordError(f"{path}: exists and is not a {FORMAT_NAME} file; it is left alone, choose another -o")
            return _read(file)
    except DAMAGE as error:
        raise RecordError(f"{path}: exists and cannot be read ({reason(error)}); remove it or choose another -o") from error


def _read(file: h5py.File) -> Closed:
    attrs = file.attrs
    closed = Closed(str(attrs["model"]), str(attrs["dtype"]), int(attrs["seed"]), str(attrs["created"]))
    columns = [text(file, f"cells/{name}") for name in ("trace", "policy", "variant")] + [file["cells/budget_tokens"][:].tolist(), text(file, "cells/kept")]
    steps = [file[f"steps/{name}"][:] for name in ("kl", "top1_agree", "log_likelihood")]
    # By the cells' own names: one with slashes lies deeper in /full.
    closed.full = {trace: _full(file[f"full/{trace}"]) for trace in dict.fromkeys(columns[0])}
    longest = max((len(run.entropy) for run in closed.full.values()), default=0)
    if any(table.shape != (len(columns[0]), longest) for table in steps):
        raise ValueError(f"the tables of /steps are not [{len(columns[0])} cells, {longest} steps]")
    for number, row in enumerate(zip(*columns, strict=True)):
        count = len(closed.full[row[0]].entropy)
        cell = Judged(*row, *(table[number, :count] for table in steps), *_text(file, f"generated/{number}"))
        closed.cells[cell.key] = cell
    return closed


def _full(group: h5py.Group) -> FullRun:
    entropy, likelihood = group["entropy"][:], group["log_likelihood"][:]
    if entropy.ndim != 1 or entropy.shape != likelihood.shape:
        raise ValueError(f"entropy and log_likelihood of {group.name} are not of one length")
    layers = [int(layer) for layer in str(group.attrs["layers_masked"]).split(",")]
    return FullRun(str(group.attrs["digest"]), entropy, likelihood, layers, int(group.attrs["num_layers"]), float(group.attrs["keys_error"]),
                   *_text(group, "generated"))


def _text(group: h5py.Group, name: str) -> tuple[str | None, int]:
    """A generated text and how many tokens were asked for (0 where the file does not say)."""
    if name not in group:
        return None, 0
    return group[name].asstr()[()], int(group[name].attrs.get("tokens", 0))


def _write_text(file: h5py.File, name: str, said: Judged | FullRun) -> None:
    if said.text is not None:
        file.create_dataset(name, data=said.text, dtype=h5py.string_dtype("utf-8")).attrs["tokens"] = said.text_tokens


def figures(cell: Judged, full: FullRun) -> dict[str, float]:
    """The columns of closed.csv that are means over steps. The quantile is nearest-rank."""
    change = (cell.likelihood - full.likelihood)[:-1]
    return {"kl": float(cell.kl.mean()), "kl_p95": float(np.quantile(cell.kl, 0.95, method="inverted_cdf")),
            "top1_agreement": float(cell.agree.mean()), "log_likelihood_change": float(change.mean()) if len(change) else float("nan")}


def _csv(cells: list[Judged], full: dict[str, FullRun]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for cell in cells:
        shown = ["" if np.isnan(value) else repr(value) for value in figures(cell, full[cell.trace]).values()]
        writer.writerow([cell.trace, cell.policy, cell.variant, cell.budget_tokens, *shown, len(cell.kl)])
    return out.getvalue()


def _list(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


def _replace(path: Path, fill) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fill(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise RecordError(f"{path}: writing failed ({os.strerror(error.errno) if error.errno else reason(error)})") from error
    finally:
        part.unlink(missing_ok=True)
