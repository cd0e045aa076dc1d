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
from .kept import text, word

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

    @property
    def key(self) -> tuple:
        return self.trace, self.variant, self.budget_tokens


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
                if run.text is not None:
                    file[f"full/{trace}"].create_dataset("generated", data=run.text, dtype=strings)
            for number, cell in enumerate(cells):
                if cell.text is not None:
                    file.create_dataset(f"generated/{number}", data=cell.text, dtype=strings)

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
    except (OSError, KeyError) as error:
        raise RecordError(f"{path}: exists and cannot be read ({str(error).splitlines()[0]}); remove it or choose another -o") from error


def _read(file: h5py.File) -> Closed:
    attrs = file.attrs
    closed = Closed(str(attrs["model"]), str(attrs["dtype"]), int(attrs["seed"]), str(attrs["created"]))
    for trace, group in file.get("full", {}).items():
        said = lambda name: group[name].asstr()[()] if name in group else None  # noqa: E731
        layers = [int(layer) for layer in str(group.attrs["layers_masked"]).split(",")]
        closed.full[trace] = FullRun(str(group.attrs["digest"]), group["entropy"][:], group["log_likelihood"][:], layers,
                                     int(group.attrs["num_layers"]), float(group.attrs["keys_error"]), said("generated"))
    columns = [text(file, f"cells/{name}") for name in ("trace", "policy", "variant")] + [file["cells/budget_tokens"][:].tolist(), text(file, "cells/kept")]
    kl, agree, likelihood = (file[f"steps/{name}"] for name in ("kl", "top1_agree", "log_likelihood"))
    for number, row in enumerate(zip(*columns)):
        steps = len(closed.full[row[0]].entropy)
        said = file[f"generated/{number}"].asstr()[()] if f"generated/{number}" in file else None
        cell = Judged(*row, kl[number, :steps], agree[number, :steps], likelihood[number, :steps], said)
        closed.cells[cell.key] = cell
    return closed


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
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise RecordError(f"{path}: writing failed ({reason})") from error
    finally:
        part.unlink(missing_ok=True)
