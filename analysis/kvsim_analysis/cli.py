"""The command kvsim-plot: reads the options, calls one subcommand, answers faults in one line with exit code 2."""

import argparse
import sys

from . import __version__, pages_mrc, pages_noise, pages_phases
from .commands import compare, consistency, curve, evictions, fidelity, heatmap, pareto, stats, steps
from .errors import UserError, nearest

COMMANDS = (curve, pareto, heatmap, steps, consistency, evictions, stats, compare, fidelity, pages_mrc, pages_noise, pages_phases)
_OVERVIEW = """Draws figures from the results of `kvsim run`, `kvsim trace stats` and `kvsim pages`.

Every subcommand takes one or more results folders, writes one figure (PNG, SVG or PDF) and prints its path.
"""
_EXAMPLES = """first steps:
  kvsim run trace.h5 --policy snapkv --policy h2o --budget 64..1024*2 --out runs/first
  kvsim-plot curve runs/first                     error, consistency and misses against the budget
  kvsim-plot pareto runs/first                    which variant gives the least error for its bytes
  kvsim-plot heatmap runs/first --budget 128      where in the model it hurts
  kvsim-plot compare runs/first --variant snapkv --variant h2o

`kvsim-plot SUBCOMMAND --help` has the options and more examples. A policy keeps its colour and marker in all figures;
full, the oracles and random are grey references. exit codes: 0 written, 2 wrong use or unreadable input.
"""


class _Parser(argparse.ArgumentParser):
    """argparse with faults in one line and the nearest valid word."""

    def error(self, message):
        hint = "; write the folder before --y and --layer" if message.endswith("required: DIR") else ""
        raise UserError(f"{message}{hint} (see: {self.prog} --help)")

    def option_names(self):
        return [s for action in self._actions for s in action.option_strings]


def build_parser():
    """The whole command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="kvsim-plot", description=_OVERVIEW, epilog=_EXAMPLES, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"kvsim-plot {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="SUBCOMMAND", title="subcommands", parser_class=_Parser)
    parsers = {}
    for module in COMMANDS:
        sub = subparsers.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=formatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
        parsers[module.NAME] = sub
    return parser, parsers


def _parse(arguments):
    parser, parsers = build_parser()
    word = next((a for a in arguments if not a.startswith("-")), None)
    if word is not None and word not in parsers and arguments[0] == word:
        close = nearest(word, parsers)
        hint = f"did you mean '{close}'?" if close else "there are: " + ", ".join(parsers)
        raise UserError(f"no subcommand '{word}'; {hint}")
    parsed, extra = parser.parse_known_args(arguments)
    if extra:
        known = parsers[parsed.command].option_names() if parsed.command else parser.option_names()
        close = nearest(extra[0].split("=")[0], known)
        raise UserError(f"unknown option '{extra[0]}'; " + (f"did you mean '{close}'?" if close else "see --help"))
    if parsed.command is None:
        parser.print_help()
        raise UserError("name a subcommand: " + ", ".join(parsers))
    return parsed


def main(arguments=None):
    """Runs the command and returns its exit code."""
    try:
        parsed = _parse(list(sys.argv[1:] if arguments is None else arguments))
        print(parsed.run(parsed))
        return 0
    except UserError as error:
        print(f"kvsim-plot: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
