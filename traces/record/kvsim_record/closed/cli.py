"""The command kvsim-judge: from a replay's folder to closed.h5, with one line for every error."""

import sys
from pathlib import Path

from ..command import guarded
from ..errors import RecordError



def main(argv: list[str] | None = None) -> int:
    from . import options  # light: --help and wrong options answer at once, before torch is loaded

    args = options.parser().parse_args(argv)
    return guarded("kvsim-judge", lambda: _run(args), "stopped; what was finished is kept, the same command continues")


def _run(args) -> None:
    from ..options import check_device
    from .kept import Replay

    check_device(args.device)
    if args.by and not args.top:
        raise RecordError("--by: belongs to --top N")
    with Replay(Path(args.folder)) as replay:
        _judge(args, replay)


def _judge(args, replay) -> None:
    from ..progress import Progress
    from .choice import choose, left_out, usual_metric
    from .session import Session
    from .store import figures

    progress = Progress(args.quiet, "kvsim-judge", lines=True)
    listed = lambda value: [part.strip() for part in value.split(",") if part.strip()] if value else []  # noqa: E731
    policies = listed(args.policies)
    by = args.by
    if args.top and not by:
        by = usual_metric(replay)
        progress.say(f"--top {args.top}: by {by}" + ("" if by == "predicted_kl" else "; predicted_kl, which is nearer to the model, needs kvsim-record --output-proj"))
    cells = choose(replay, policies, args.variant, listed(args.budgets), args.top, by)
    for variant, reason in left_out(replay, policies, args.variant).items():
        progress.say(f"left out: {variant}: {reason}")
    if not cells:
        raise RecordError(f"{replay.folder}: no cell of kept.h5 can be judged")
    out = Path(args.out) if args.out else replay.folder / "closed.h5"
    session = Session(args, replay, cells, out, progress)
    session.run()
    _report(session, cells, figures)
    progress.say(f"wrote {out} and {out.with_suffix('.csv').name}: {len(session.closed.cells)} cell{'s' if len(session.closed.cells) > 1 else ''}")


def _report(session, cells, figures) -> None:
    """A line per cell, the least divergence first within trace and budget; then the texts."""
    closed = session.closed
    rows = [(cell, figures(closed.cells[cell.key], closed.full[cell.trace])) for cell in cells]
    rows.sort(key=lambda row: (row[0].trace, row[0].budget_tokens, row[1]["kl"]))
    width = max(len(cell.variant) for cell, _ in rows)
    width = min(width, 72)
    print(f"{'trace':24}  {'budget':>7}  {'variant':{width}}  {'kl':>9}  {'top1':>6}  {'loglik':>8}")
    for cell, found in rows:
        print(f"{_cut(cell.trace, 24):24}  {cell.budget_tokens:>7}  {_cut(cell.variant, width):{width}}  {found['kl']:>9.4g}  "
              f"{found['top1_agreement']:>6.3f}  {found['log_likelihood_change']:>+8.4f}")
    for cell, _ in rows if session.generating else ():
        said = closed.cells[cell.key].text
        if said is not None:
            print(f"\n[{cell.trace}, {cell.budget_tokens} tokens, {cell.variant}]\n{said}")
    for trace, run in closed.full.items() if session.generating else ():
        if run.text is not None:
            print(f"\n[{trace}, full cache]\n{run.text}")


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."


if __name__ == "__main__":
    sys.exit(main())
