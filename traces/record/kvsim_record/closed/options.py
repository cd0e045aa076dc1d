"""The command line of kvsim-judge."""

import argparse

from ..options import positive

_EPILOG = """\
examples:
  replay, keeping the kept sets, and let the model judge every cell:
    kvsim run essay.h5 --policy snapkv --policy h2o --budget 64,128 --save kept --out runs/essay
    kvsim-judge runs/essay
  the five variants that look best, per budget, and what the model then says:
    kvsim-judge runs/essay --top 5 --generate 64
  some of them:
    kvsim-judge runs/essay --policies snapkv,h2o --budgets 128
    kvsim-judge runs/essay --variant 'snapkv(window=32)'
  the recording has moved:
    kvsim-judge runs/essay --trace /elsewhere/essay.h5

The model reads the prompt (its keys must be those of the trace) and then, for each cell, the recorded answer with every evicted entry
masked, per head and step as the replay wrote it. Only layers that the trace holds are masked. closed.h5 has KL(full || evicted) in nats,
whether the likeliest token is the same, and the log-likelihood of the recorded next token, per step; closed.csv one line per cell.
Give the command again to continue a run that was stopped, or to add cells. Policies whose caches are not all told by
kept sets (changed entries, moved positions, sets that differ from step to step) are left out and named.
Exit codes: 0 done, 2 wrong use, another model, or files that do not fit, 130/143 stopped by a signal.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="kvsim-judge", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Lets the real model judge the kept sets of a replay: runs it with exactly those entries of its cache\n"
                    "and compares every next-token distribution with the full cache's.")
    p.add_argument("folder", metavar="DIR", help="folder of `kvsim run --save kept`")
    p.add_argument("-o", "--out", metavar="FILE", help="what to write (default: DIR/closed.h5); the table is beside it, as .csv")
    p.add_argument("--trace", metavar="FILE", action="append", default=[], help="a recording that is not where results.h5 says (repeatable)")

    g = p.add_argument_group("which cells (default: all that can be judged)")
    g.add_argument("--policies", metavar="LIST", help="policies by name, e.g. snapkv,decode:h2o")
    g.add_argument("--variant", metavar="SPEC", action="append", default=[], help="variants with these parameters, e.g. 'snapkv(window=32)' (repeatable)")
    g.add_argument("--budgets", metavar="LIST", help="budgets as asked for in the run, or in tokens, e.g. 128,10%%")
    g.add_argument("--top", metavar="N", type=positive, help="per budget the N variants with the best mean of --by; oracles, full, and variants"
                   " that lack some trace do not count")
    g.add_argument("--by", metavar="METRIC", help="with --top: a metric of the run (default: predicted_kl where every trace has it, else output_error)")

    g = p.add_argument_group("model")
    g.add_argument("--model", metavar="NAME", help="folder, hub name or .gguf file (default: the one that the trace names)")
    g.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="float32",
                   help="precision to compute in (default: float32; 16-bit logits blur small divergences)")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")

    p.add_argument("--generate", metavar="N", type=positive, help="also decode up to N tokens greedily from every evicted cache, keep and print the texts "
                   "(not for decode: policies, whose sets are known for the recorded answer alone)")
    p.add_argument("--quiet", action="store_true", help="no messages, no progress")
    return p
