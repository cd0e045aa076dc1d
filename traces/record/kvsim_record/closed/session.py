"""One call of kvsim-judge: finds traces and model, runs what is not finished, and writes as it goes."""

import time
from pathlib import Path

import h5py
import torch

from .. import FORMAT_NAME, models
from ..decode import end_tokens
from ..errors import RecordError
from .kept import Cell, Replay, word
from .model import Full, Judge, Recorded, generate, read_trace
from .store import Closed, FullRun, Judged, read

_WRITE_EVERY = 10.0  # seconds between two writes of what is finished


class Session:
    """`closed` holds what is known so far; `generating` says whether texts were asked for."""

    def __init__(self, args, replay: Replay, cells: list[Cell], out: Path, progress):
        self._args, self._replay, self._cells, self._out, self._progress = args, replay, cells, out, progress
        self.generating = args.generate is not None
        self._order = [cell.key for cell in replay.cells]
        self._paths = self._find_traces()
        self._recorded = {name: self._read(name) for name in dict.fromkeys(cell.trace for cell in cells)}
        self._dtype = args.dtype
        self.closed = self._continue()
        self._written = time.monotonic()

    def run(self) -> None:
        left = [cell for cell in self._cells if self._unfinished(cell)]
        if not left:
            self._progress.say("every cell is finished already")
            return
        loaded = self._load()
        if self.generating and any(cell.policy.startswith("decode:") for cell in self._cells):
            self._progress.say("no text from decode: policies: what they evict is known for the recorded answer alone")
        self._progress.phase("judge", len(left), "cell")
        try:
            for name, recorded in self._recorded.items():
                some = [cell for cell in left if cell.trace == name]
                if some:
                    self._judge_trace(loaded, recorded, some)
        finally:
            self._progress.end()
            if self.closed.cells:
                self.closed.write(self._out, self._order)

    # --- what there is -----------------------------------------------------------------------------------------

    def _find_traces(self) -> dict[str, Path]:
        """Trace name -> file, of the traces that some cell needs; given files are matched by digest, then by name."""
        entries = {trace.name: trace for trace in self._replay.traces}
        paths = {name: self._usual_place(entries[name].path) for name in dict.fromkeys(cell.trace for cell in self._cells)}
        for given in map(Path, self._args.trace):
            digest = _digest(given)
            fitting = [name for name in paths if entries[name].digest == digest] if digest else [name for name in paths if name == given.stem]
            if not fitting:
                raise RecordError(f"--trace {given}: none of the run's recordings ({', '.join(paths)}) has this content; give the file that was replayed")
            paths.update({name: given for name in fitting})
        return paths

    def _usual_place(self, path: str) -> Path:
        """As results.h5 has it: relative to where the replay ran, which often is here or where the folder lies."""
        folder = self._replay.folder.resolve()
        places = [Path(path), *(parent / path for parent in (folder, *folder.parents))]
        return next((place for place in places if place.is_file()), Path(path))

    def _read(self, name: str) -> Recorded:
        path, entry = self._paths[name], next(trace for trace in self._replay.traces if trace.name == name)
        if not path.is_file():
            raise RecordError(f"{path}: no such file; say where the recording of {name} is with --trace FILE")
        with h5py.File(path, "r") as file:
            recorded = read_trace(name, file)
        if recorded.digest != entry.digest:
            raise RecordError(f"{path}: has changed since the replay (digest {recorded.digest or 'none'}, replayed {entry.digest or 'none'}); "
                              "replay it again, or give the older file with --trace")
        return recorded

    def _model(self) -> str:
        names = sorted({recorded.model for recorded in self._recorded.values()})
        if len(names) > 1:
            raise RecordError(f"the run's traces are of several models ({', '.join(names)}); replay and judge them one model at a time")
        return names[0]

    def _continue(self) -> Closed:
        if not self._out.parent.is_dir():
            raise RecordError(f"{self._out.parent}: no such folder; make it or choose another -o")
        if self._out.suffix == ".csv":
            raise RecordError(f"-o {self._out}: names the HDF5 file; the table of the same name with .csv comes beside it")
        model, found = self._model(), read(self._out)
        if found is None:
            return Closed(model, self._dtype, int(self._replay.kept.attrs.get("seed", 0)))
        if (found.model, found.dtype) != (model, self._dtype):
            raise RecordError(f"{self._out}: holds {found.model} in {found.dtype}, this is {model} in {self._dtype}; "
                              f"give --dtype {found.dtype}, or another -o")
        for name, recorded in self._recorded.items():
            if name in found.full and found.full[name].digest != recorded.digest:
                self._progress.say(f"{name}: another recording than {self._out} was made from; its cells run again")
                found.full.pop(name)
                found.cells = {key: cell for key, cell in found.cells.items() if key[0] != name}
        for cell in [cell for cell in found.cells.values() if not cell.sound]:
            self._progress.say(f"{cell.variant} at {cell.budget_tokens} tokens: {self._out.name} holds values that are no divergence; it runs again")
            found.cells.pop(cell.key)
        known = set(self._order)
        found.cells = {key: cell for key, cell in found.cells.items() if key in known}
        return found

    def _unfinished(self, cell: Cell) -> bool:
        judged = self.closed.cells.get(cell.key)
        if judged is not None and judged.kept != self._replay.digest(cell):
            self._progress.say(f"{cell.variant} at {cell.budget_tokens} tokens: kept.h5 has changed; it runs again")
            self.closed.cells.pop(cell.key)
            return True
        return judged is None or (self._can_generate(cell) and self._lacks_text(judged))

    def _can_generate(self, cell: Cell) -> bool:
        return self.generating and not cell.policy.startswith("decode:")

    def _lacks_text(self, known: Judged | FullRun) -> bool:
        """Whether there is no text yet, or one for another --generate."""
        return known.text is None or known.text_tokens != self._args.generate

    # --- what the model does -----------------------------------------------------------------------------------

    def _load(self) -> models.Loaded:
        name = self._args.model
        if name is None and self.closed.model != models.DEFAULT_MODEL:
            name = self.closed.model
            if "/" not in name:  # the last part of a folder's path, or a file's name
                raise RecordError(f"the recording's model is {name or 'not named'}: say where it is with --model")
        self._progress.say(f"loading {name or models.DEFAULT_MODEL}")
        return models.load(name, self._args.dtype, self._args.device)

    def _judge_trace(self, loaded: models.Loaded, recorded: Recorded, cells: list[Cell]) -> None:
        _check_tokens(loaded, recorded)
        full = Full(loaded, recorded)
        with h5py.File(self._paths[recorded.name], "r") as file:
            error = full.check(file)
        layers = loaded.model.config.get_text_config(decoder=True).num_hidden_layers
        some = "all" if len(recorded.layers) == layers else f"{len(recorded.layers)} of {layers}"
        self._progress.say(f"{recorded.name}: {recorded.prompt} prompt + {recorded.steps} decoded tokens, keys as recorded to {error:.1e}, "
                           f"{some} layers are masked" + ("" if some == "all" else ": those recorded; the others keep everything"))
        judge, ends = Judge(full), end_tokens(loaded.model, loaded.tokenizer)
        before = self.closed.full.get(recorded.name)
        run = FullRun(recorded.digest, judge.entropy, judge.likelihood, recorded.layers, layers, error, *((before.text, before.text_tokens) if before else ()))
        self.closed.full[recorded.name] = run
        if self.generating and self._lacks_text(run):
            run.text, run.text_tokens = _text(loaded, generate(full, None, 1, self._args.generate, ends)[0]), self._args.generate
        size = judge.cells_at_once()
        for begin in range(0, len(cells), size):
            self._judge_batch(loaded, full, judge, cells[begin : begin + size], ends)

    def _judge_batch(self, loaded, full: Full, judge: Judge, cells: list[Cell], ends: set[int]) -> None:
        last = self._last_steps(full, cells)
        for cell, steps in zip(cells, judge.run(last, len(cells))):
            self.closed.cells[cell.key] = Judged(cell.trace, cell.policy, cell.variant, cell.budget_tokens, self._replay.digest(cell),
                                                 steps.kl, steps.agree, steps.likelihood)
        able = [i for i, cell in enumerate(cells) if self._can_generate(cell)]
        if able:
            chosen = {layer: table[able] for layer, table in last.items()}
            for i, tokens in zip(able, generate(full, chosen, len(able), self._args.generate, ends)):
                judged = self.closed.cells[cells[i].key]
                judged.text, judged.text_tokens = _text(loaded, tokens), self._args.generate
        self._progress.step(len(cells))
        if time.monotonic() - self._written > _WRITE_EVERY:
            self.closed.write(self._out, self._order)
            self._written = time.monotonic()

    def _last_steps(self, full: Full, cells: list[Cell]) -> dict[int, torch.Tensor]:
        recorded, found = full.recorded, {}
        for cell in cells:
            if self._replay.layers(cell) != recorded.layers:
                raise RecordError(f"kept.h5: {cell.variant} at {cell.budget_tokens} tokens has not the layers of {recorded.name}; replay it again")
        for layer in recorded.layers:
            tables = [self._replay.last_steps(cell, layer, recorded.heads, recorded.prompt, recorded.steps) for cell in cells]
            found[layer] = torch.stack([torch.from_numpy(table) for table in tables]).to(full.keys[layer].device)
        return found


def _digest(path: Path) -> str:
    try:
        with h5py.File(path, "r") as file:
            if word(file, "format") != FORMAT_NAME:
                raise RecordError(f"--trace {path}: is not a {FORMAT_NAME} file")
            return word(file, "digest")
    except OSError as error:
        raise RecordError(f"--trace {path}: cannot be read as HDF5 ({str(error).splitlines()[0]})") from error


def _check_tokens(loaded: models.Loaded, recorded: Recorded) -> None:
    known = loaded.model.get_input_embeddings().num_embeddings
    if min(recorded.ids) < 0 or max(recorded.ids) >= known:
        raise RecordError(f"{recorded.name}: token {max(recorded.ids)} is none of the model's {known}; name the model of the recording with --model")


def _text(loaded: models.Loaded, tokens: list[int]) -> str:
    return loaded.tokenizer.decode(tokens, skip_special_tokens=True).replace("\0", "\u2400")
