"""Puts a whole trace together: what the run streamed, keys and values, tables, attributes, self-check, digest."""

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import transformers

from . import __version__
from .decode import Chooser, end_tokens
from .dtypes import raw
from .errors import RecordError
from .lookahead import Lookahead, run_lookahead
from .models import Loaded
from .plan import Plan, facts_key, root_facts
from .progress import Progress
from .prompt import Prompt, Segment, token_texts
from .recorder import Recorder
from .second_pass import SecondPass, origin, pieces
from .selfcheck import Outcome, check
from .sensitivity import record_sensitivity
from .settings import Sampling
from .stats import SINKS
from .writer import TraceWriter, check_destination


@dataclass
class Job:
    """One recording: `answer` is a given continuation (None: the model's own), `source` names the text."""

    prompt: Prompt
    sampling: Sampling
    source: str
    answer: list[int] | None = None
    ignore_eos: bool = False
    lookahead: Lookahead | None = None


@dataclass
class Report:
    decoded: int
    ended: bool
    answer: str
    bytes: int
    digest: str
    check: Outcome


def record(loaded: Loaded, plan: Plan, job: Job, path: Path, progress: Progress) -> Report:
    """Records into `path`; whatever goes wrong, no unfinished file stays under that name."""
    check_destination(path, plan.bytes(job.lookahead))
    try:
        with TraceWriter(path) as writer:
            writer.reserve(plan.bytes(job.lookahead))
            return _record(loaded, plan, job, writer, progress)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise RecordError(f"{path}: writing failed ({reason}); nothing was kept") from error
    finally:
        progress.end()


def _record(loaded: Loaded, plan: Plan, job: Job, writer: TraceWriter, progress: Progress) -> Report:
    recorder = Recorder(loaded.model, plan, writer, progress)
    recorder.tail_rows = job.lookahead.window if job.lookahead else 0
    logits = recorder.prefill(job.prompt.ids)
    ends = end_tokens(loaded.model, loaded.tokenizer)
    second_pass = _second_pass(loaded, job, recorder, progress) if plan.options.second_pass else None
    passes = run_lookahead(loaded.model, recorder, job.lookahead, logits, ends, progress) if job.lookahead else []
    if job.answer is not None:
        recorder.follow(job.answer)
    else:
        recorder.decode(logits, Chooser(job.sampling), set() if job.ignore_eos else ends)
    if not recorder.tokens:
        raise RecordError("the model ends its answer before the first token; use --ignore-eos to go on all the same")
    if len(recorder.tokens) < plan.decode:
        plan.decode = len(recorder.tokens)
        writer.shrink({name: shape for name, (shape, _) in plan.streamed().items()}, plan.bytes(job.lookahead))
    if plan.options.sensitivity:
        record_sensitivity(recorder, plan.options.sensitivity, plan.options.seed)
    progress.phase("write", len(plan.layers), "layer")
    _write_layers(plan, recorder, writer, progress)
    _write_tables(loaded, plan, job, recorder.tokens, writer)
    tied = origin(loaded.name, job.prompt.ids)
    for result in passes:
        result.write(writer, plan, tied)
    if second_pass is not None:
        second_pass.write(writer, tied, job.prompt.prefix)
    writer.attributes("/", _root_attributes(loaded, plan, job))
    writer.reopen()
    outcome = check(writer.file, recorder.samples, plan.dtype)
    size = writer.part.stat().st_size
    digest = writer.commit({"selfcheck_max_error": outcome.max_error, "selfcheck_mean_error": outcome.mean_error,
                            "selfcheck_bound": outcome.bound, "selfcheck_count": outcome.count})
    answer = loaded.tokenizer.decode(recorder.tokens, skip_special_tokens=False)
    return Report(len(recorder.tokens), recorder.ended, answer, size, digest, outcome)


def _second_pass(loaded: Loaded, job: Job, recorder: Recorder, progress: Progress) -> SecondPass:
    found = pieces(loaded.tokenizer, job.prompt.ids, job.prompt.prefix, job.prompt.templated)
    second_pass = SecondPass(loaded.model, recorder, progress)
    second_pass.run(found, job.prompt.ids)
    recorder.check_rope()
    return second_pass


def _write_layers(plan: Plan, recorder: Recorder, writer: TraceWriter, progress: Progress) -> None:
    root = root_facts(plan.layers)
    positions = np.arange(plan.first_query, plan.prompt + plan.decode, dtype=np.int32)
    finished = plan.finished()
    for layer in plan.layers:
        at = plan.group(layer.index)
        tensors = {"key": recorder.keys[layer.index][0], "value": recorder.values[layer.index][0]}
        if layer.index in plan.projections:
            tensors["output_proj"] = layer.output_proj.to(recorder.keys[layer.index].dtype)
        for name, tensor in tensors.items():
            shape, kind = finished[f"{at}/{name}"]
            if tuple(tensor.shape) != shape:
                raise RecordError(f"layer {layer.index}: {name} is {tuple(tensor.shape)}, expected {shape}")
            writer.put(f"{at}/{name}", raw(tensor), kind)
        writer.put(f"{at}/query_position", positions, "int32")
        if recorder.stats:
            for name, values in recorder.stats[layer.index].results().items():
                writer.put(f"{at}/{name}", values, "float32")
            writer.attributes(f"{at}/query_stats", {"sinks": SINKS})
        writer.attributes(at, {"sliding_window": layer.window})
        _write_overrides(layer, root, at, writer)
        progress.step()
    if root.inv_freq is not None:
        writer.put("/rope/inv_freq", root.inv_freq.astype(np.float32), "float32")


def _write_overrides(layer, root, at: str, writer: TraceWriter) -> None:
    if facts_key(layer) == facts_key(root):
        return
    writer.attributes(at, {"softmax_scale": layer.scale, "logit_softcap": layer.softcap,
                           "attention_scaling": layer.attention_scaling})
    if root.inv_freq is not None:
        # A layer without rotation in a model that rotates: frequencies of zero turn nothing.
        table = np.zeros_like(root.inv_freq) if layer.inv_freq is None else layer.inv_freq
        writer.put(f"{at}/rope/inv_freq", table.astype(np.float32), "float32")


def _write_tables(loaded: Loaded, plan: Plan, job: Job, tokens: list[int], writer: TraceWriter) -> None:
    ids = job.prompt.ids + tokens
    writer.put("/tokens/id", np.array(ids, dtype=np.int32), "int32")
    writer.put_strings("/tokens/text", token_texts(loaded.tokenizer, ids))
    segments = [Segment(s.begin, s.end, s.kind, s.turn) for s in job.prompt.segments]
    for segment in segments:
        if segment.kind == "turn" and segment.turn == job.prompt.turn:
            segment.end = len(ids)
    segments.append(Segment(plan.prompt, len(ids), "answer", job.prompt.turn))
    segments.sort(key=lambda s: (s.begin, -s.end, s.kind))
    for name in ("begin", "end", "turn"):
        writer.put(f"/segments/{name}", np.array([getattr(s, name) for s in segments], dtype=np.int32), "int32")
    writer.put_strings("/segments/kind", [s.kind for s in segments])


def _root_attributes(loaded: Loaded, plan: Plan, job: Job) -> dict:
    root = root_facts(plan.layers)
    tools = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {
        "model": loaded.name, "weights": loaded.weights, "num_layers": plan.num_layers,
        "num_query_heads": root.query_heads, "num_kv_heads": root.kv_heads,
        "head_dim": root.head_dim, "value_dim": root.value_dim,
        "softmax_scale": float(root.scale), "logit_softcap": float(root.softcap),
        "prompt_len": plan.prompt, "decode_len": plan.decode,
        "rope_layout": root.rope_layout, "attention_scaling": float(root.attention_scaling),
        "recorder": f"kvsim-record {__version__} ({tools})",
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "source": job.source,
        "decoding": "given" if job.answer is not None else job.sampling.rule(),
    } | ({"retention_gates": plan.gates_source} if plan.gates else {}) \
      | ({"sensitivity_seed": plan.options.seed} if plan.options.sensitivity else {})

