"""The command kvsim-record: from options to a trace, with one line for every error."""

import sys
from pathlib import Path

from .command import guarded
from .errors import RecordError

_SHOWN = 400  # characters of the answer that are printed


def main(argv: list[str] | None = None) -> int:
    from . import options  # light: --help and wrong options answer at once, before torch is loaded

    args = options.parser().parse_args(argv)

    def work() -> None:
        options.check(args)
        _run(args)

    return guarded("kvsim-record", work, "stopped; nothing was kept")


def _run(args) -> None:
    from . import options, prompt as prompts
    from .progress import Progress

    text = prompts.read_text(args.prompt) if args.prompt else None
    chat = prompts.read_chat(args.chat) if args.chat else None
    given = prompts.read_text(args.given) if args.given else None
    wanted, sampling, lookahead = options.recording(args), options.sampling(args), options.lookahead(args)
    parts = None
    if text is not None:
        parts = prompts.split_parts(text, args.split.split(":")) if args.split else [prompts.Part("context", text.strip())]
    progress = Progress(args.quiet)

    from . import models, trace
    from .plan import make_plan
    from .probe import probe
    from .writer import check_destination

    path = Path(args.out)
    check_destination(path, 0)
    progress.say(f"loading {args.model or models.DEFAULT_MODEL}")
    loaded = models.load(args.model, args.dtype, args.device)
    prompt = _prompt(args, loaded, parts, chat, sampling)
    for evidence in args.evidence:
        prompts.mark_evidence(prompt, evidence)
    answer = None
    if given is not None:
        answer = loaded.tokenizer(given.strip("\n"), add_special_tokens=False)["input_ids"][: args.decode]
    decode = len(answer) if answer is not None else args.decode or 256
    config = loaded.model.config.get_text_config(decoder=True)
    _check_length(config, len(prompt.ids) + decode)
    layers = probe(loaded.model, prompt.ids)
    plan = make_plan(layers, config.num_hidden_layers, len(prompt.ids), decode, loaded.dtype, config.hidden_size, wanted)
    _check_passes(plan, loaded, layers, lookahead, prompt)
    _announce(progress, loaded, plan, plan.bytes(lookahead), given is None and not args.ignore_eos)
    source = Path(args.prompt or args.chat).name
    job = trace.Job(prompt, sampling, source, answer, args.ignore_eos, lookahead)
    report = trace.record(loaded, plan, job, path, progress)
    _conclude(progress, path, report, args)


def _prompt(args, loaded, parts, chat, sampling):
    from . import prompt as prompts
    from .reply import reply

    if chat is None:
        return prompts.plain(loaded.tokenizer, parts, args.instruct)
    messages, context = chat
    return prompts.conversation(loaded.tokenizer, messages, context,
                                lambda so_far: reply(loaded, so_far, sampling, args.decode or 256))


def _check_length(config, total: int) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    if limit and total > limit:
        raise RecordError(f"prompt and answer have {total} tokens, the model was made for {limit}; shorten the text or --decode")


def _check_passes(plan, loaded, layers, lookahead, prompt) -> None:
    from . import second_pass

    if lookahead is not None and lookahead.window > plan.prompt:
        raise RecordError(f"--lookahead-policy: a window of {lookahead.window} in a prompt of {plan.prompt} tokens")
    if (lookahead is not None or plan.options.second_pass or plan.options.sensitivity) and len(layers) < plan.num_layers:
        raise RecordError("--lookahead, --second-pass and --sensitivity run the model on attention's cache alone, and some layers of this "
                          "model keep another state; record without them")
    if plan.options.second_pass:
        found = second_pass.pieces(loaded.tokenizer, prompt.ids, prompt.prefix, prompt.templated)
        second_pass.check_length(loaded.model.config.get_text_config(decoder=True), plan.prompt, found)


def _announce(progress, loaded, plan, size: int, open_end: bool) -> None:
    layer = plan.layers[0]
    queries = "all queries" if plan.options.query_window is None else f"queries of the last {plan.options.query_window} prompt tokens"
    most = "up to " if open_end else ""
    progress.say(f"{loaded.name} ({loaded.weights}): {plan.prompt} prompt + {most}{plan.decode} decoded tokens, "
                 f"{len(plan.layers)} of {plan.num_layers} layers, {layer.query_heads} query / {layer.kv_heads} KV heads of "
                 f"{layer.head_dim}, {plan.dtype}, {queries}")
    progress.say(f"size: at most {size / 2**20:.1f} MiB")


def _conclude(progress, path: Path, report, args) -> None:
    if report.ended and args.decode and report.decoded < args.decode:
        progress.say(f"the text ended after {report.decoded} of {args.decode} tokens (--ignore-eos goes on)")
    answer = report.answer.strip()
    progress.say(f"answer: {answer if len(answer) <= _SHOWN else answer[:_SHOWN] + '...'!r}")
    progress.say(f"self-check: largest error {report.check.max_error:.2e}, mean {report.check.mean_error:.2e}, "
                 f"bound {report.check.bound:.0e}, over {report.check.count} outputs")
    progress.say(f"wrote {path} ({report.bytes / 2**20:.2f} MiB, digest {report.digest})")


if __name__ == "__main__":
    sys.exit(main())
