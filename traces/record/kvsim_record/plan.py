"""What a recording will hold: its layers, the shape and type of every tensor, and the bytes they take."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .dtypes import file_type
from .errors import RecordError
from .gates import Gate, GateFile
from .lookahead import Lookahead
from .probe import Layer, common_shape
from .settings import Options
from .stats import COLUMN_SUMS, SINKS

# Bytes beside the tensors: id and text of a token, the tables and object headers of a layer, of a small group.
_PER_TOKEN, _PER_LAYER, _PER_GROUP = 96, 16384, 4096


@dataclass
class Plan:
    """Geometry of one recording; `decode` is the number of decoded tokens (the most there can be, until it is known)."""

    layers: list[Layer]
    num_layers: int
    prompt: int
    decode: int
    dtype: str
    hidden_size: int
    options: Options
    projections: list[int] = field(default_factory=list)
    gates: dict[int, Gate] = field(default_factory=dict)
    gates_source: str = ""
    blocks: list = field(default_factory=list)  # all decoder blocks that hold attention, in order

    @property
    def first_query(self) -> int:
        window = self.options.query_window
        return 0 if window is None else self.prompt - window

    def group(self, layer: int) -> str:
        return f"/layers/{layer:03d}"

    def has_norm(self, layer: Layer) -> bool:
        """Whether the norm of the residual stream after the layer is recorded: errors of its output are seen against it."""
        return layer.block is not None and (self.options.sensitivity > 0 or layer.index in self.projections)

    def streamed(self) -> dict[str, tuple[tuple, str]]:
        """Path -> (shape, element type) of what is written while the model runs."""
        total, rows = self.prompt + self.decode, self.prompt + self.decode - self.first_query
        found: dict[str, tuple[tuple, str]] = {}
        for layer in self.layers:
            at = self.group(layer.index)
            found[f"{at}/query"] = ((layer.query_heads, rows, layer.head_dim), self.dtype)
            if self.options.attention:
                found[f"{at}/attention"] = ((layer.query_heads, rows, total), "float32")
            if self.options.hidden:
                found[f"{at}/hidden"] = ((total, self.hidden_size), self.dtype)
            if self.has_norm(layer):
                found[f"{at}/residual_norm"] = ((total,), "float32")
            if layer.index in self.gates:
                found[f"{at}/retention"] = ((layer.kv_heads, total), "float32")
        if self.options.final_hidden:
            found["/final_hidden"] = ((total, self.hidden_size), self.dtype)
        return found

    def finished(self) -> dict[str, tuple[tuple, str]]:
        """Path -> (shape, element type) of what is written when the model has run (stats and small tables aside)."""
        total = self.prompt + self.decode
        found: dict[str, tuple[tuple, str]] = {}
        for layer in self.layers:
            at = self.group(layer.index)
            found[f"{at}/key"] = ((layer.kv_heads, total, layer.head_dim), self.dtype)
            found[f"{at}/value"] = ((layer.kv_heads, total, layer.value_dim), self.dtype)
            if layer.index in self.projections:
                found[f"{at}/output_proj"] = ((layer.query_heads * layer.value_dim, self.hidden_size), self.dtype)
        return found

    def sensitivities(self) -> dict[str, tuple[tuple, str]]:
        """Path -> (shape, element type) of the sampled gradients, written layer by layer after the answer."""
        if not self.options.sensitivity:
            return {}
        return {f"{self.group(layer.index)}/sensitivity":
                ((self.options.sensitivity, layer.query_heads, self.decode, layer.value_dim), self.dtype) for layer in self.layers}

    def bytes(self, lookahead: Lookahead | None = None) -> int:
        """Upper bound of the file's size, with what HDF5 needs for itself."""
        tensors = [*self.streamed().values(), *self.finished().values(), *self.sensitivities().values()]
        size = sum(int(np.prod(shape, dtype=np.int64)) * file_type(kind).get_size() for shape, kind in tensors)
        for layer in self.layers if self.options.stats else ():
            size += 4 * layer.query_heads * (COLUMN_SUMS * self.prompt + layer.head_dim + layer.head_dim**2)
        for one in lookahead.passes if lookahead else ():
            for layer in self.layers:
                query = lookahead.length * layer.head_dim * file_type(self.dtype).get_size()
                size += layer.query_heads * (query + 4 * min(one.capacity or self.prompt, self.prompt)) + _PER_GROUP
        for layer in self.layers if self.options.second_pass else ():
            size += 16 * layer.query_heads * self.prompt + _PER_GROUP
        if self.options.second_pass:
            size += 8 * self.prompt + _PER_GROUP  # the tokens fed
        return size + _PER_TOKEN * (self.prompt + self.decode) + _PER_LAYER * (1 + len(self.layers))


def make_plan(layers: dict[int, Layer], num_layers: int, prompt: int, decode: int, dtype: str, hidden_size: int,
              options: Options) -> Plan:
    """Chooses the recorded layers and refuses what cannot be recorded."""
    if options.layers is None:
        chosen = sorted(layers)
    else:
        chosen = sorted(set(options.layers))
        outside = [index for index in chosen if not 0 <= index < num_layers]
        if outside:
            raise RecordError(f"--layers: {outside[0]} is not a layer of this model (0..{num_layers - 1})")
        without = [index for index in chosen if index not in layers]
        if without:
            raise RecordError(f"--layers: layer {without[0]} has no softmax attention to record")
    if options.query_window is not None and options.query_window > prompt:
        raise RecordError(f"--queries window:{options.query_window}: the prompt has only {prompt} tokens")
    if options.stats and prompt <= SINKS:
        raise RecordError(f"--stats: the prompt has {prompt} tokens; more than {SINKS} are needed")
    common_shape([layers[index] for index in chosen])
    plan = Plan([layers[index] for index in chosen], num_layers, prompt, decode, dtype, hidden_size, options)
    plan.blocks = list(dict.fromkeys(layer.block for layer in layers.values()))
    if options.sensitivity and None in plan.blocks:
        raise RecordError("--sensitivity: the model does not keep its layers in one list of blocks; record without it")
    if options.retention_gates is not None:
        file = GateFile(options.retention_gates)
        plan.gates_source = file.describe
        plan.gates = {layer.index: file.gate(layer.index, hidden_size, layer.kv_heads, layer.device) for layer in plan.layers}
    if options.output_proj is not None:
        plan.projections = sorted(set(options.output_proj)) or chosen
        missing = [index for index in plan.projections if index not in chosen]
        if missing:
            raise RecordError(f"--output-proj: layer {missing[0]} is not among the recorded layers")
        for index in plan.projections:
            if layers[index].output_proj is None:
                raise RecordError(f"--output-proj: layer {index}'s output is not one plain projection of its heads")
            if layers[index].output_proj.shape[1] != hidden_size:
                raise RecordError(f"--output-proj: layer {index} does not project to the hidden size")
    return plan


def root_facts(layers: list[Layer]) -> Layer:
    """The layer whose scale, cap and RoPE stand in the root; layers that differ override them."""
    rotating = [layer for layer in layers if layer.inv_freq is not None] or layers
    commonest = Counter(map(facts_key, rotating)).most_common(1)[0][0]
    return next(layer for layer in rotating if facts_key(layer) == commonest)


def facts_key(layer: Layer) -> tuple:
    table = None if layer.inv_freq is None else layer.inv_freq.tobytes()
    return layer.scale, layer.softcap, layer.attention_scaling, table
