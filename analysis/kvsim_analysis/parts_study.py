"""What each idea of a policy is worth on given recordings: one part at a time is replaced by its oracle.

  queries              the true decode queries in place of whatever the policy guesses them by
  values               the change of the policy's own weighted output (CAOTE) in place of its value term
  queries and values   oracle_output: the exact change of the true outputs when a token goes; what is protected stays so
  head budgets         the layer's tokens divided over its heads in hindsight, the policy's own order inside a head
  layer budgets        the tokens divided over the layers in hindsight, evenly inside a layer
  all budgets          divided over all heads of all layers
  all of it            queries and values, and all budgets

Best budgets are found greedily by marginal gain over the measured curves of the heads (kvsim_analysis/oracle_budgets.py).
"""

import argparse
import csv
import os
import subprocess

import h5py
import matplotlib
import numpy as np

from . import oracle_budgets, results, style
from .errors import UserError
from .page import Page
from .parts_variants import oracle_variants
from .style import Look

PARTS = (
    "as it is",
    "queries",
    "values",
    "queries and values",
    "head budgets",
    "layer budgets",
    "all budgets",
    "all of it",
)
_COLORS = ("#1a1a1a", "#159df9", "#4ebc77", "#0bd1fd", "#b58204", "#d05073", "#812211", "#572595")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "d")


def parser():
    made = argparse.ArgumentParser(
        prog="parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("traces", metavar="TRACE", nargs="+", help="recordings")
    made.add_argument("--policy", required=True, metavar="SPEC", help="a compose(...) line, or a policy that has one")
    made.add_argument("--budget", default="64,128,256", metavar="LIST", help="tokens per KV head (default: 64,128,256)")
    made.add_argument("--y", default="output_error", metavar="METRIC", help="what is to get better (default: output_error)")
    made.add_argument("--points", type=int, default=24, metavar="N", help="budgets that heads may be given (default: 24)")
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the run, parts.csv and parts.png")
    made.add_argument("--kvsim", default="build/kvsim", metavar="FILE", help="the program (default: build/kvsim)")
    made.add_argument("--theme", choices=("light", "dark"), default="light")
    return made


def run(arguments):
    """Runs the study and returns the text of its table."""
    args = parser().parse_args(arguments)
    budgets = _budgets(args.budget)
    line = compose_line(args.kvsim, args.policy)
    prompt, steps = _lengths(args.traces)
    variants = oracle_variants(line, steps)
    grid = budget_grid(budgets, prompt, args.points)
    _replay(args, list(dict.fromkeys(variants.values())), grid)
    run_folder = results.load(os.path.join(args.out, "run"))
    table = gains(run_folder, variants, budgets, args.y)
    _write_csv(os.path.join(args.out, "parts.csv"), table, args.y)
    figure = os.path.join(args.out, "parts.png")
    with matplotlib.rc_context(style.rc(args.theme)):
        draw(table, args.y, line, [str(n) for n in run_folder.trace_names], args.theme).savefig(figure)
    return f"{text(table, args.y, line)}\n{figure}"


def _budgets(text_list):
    try:
        return sorted({int(b) for b in text_list.split(",")})
    except ValueError:
        raise UserError(f"--budget '{text_list}': write tokens, for example 64,128,256") from None


def _call(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise UserError((done.stderr.strip().splitlines() or [f"{command[0]} ended with {done.returncode}"])[-1])
    return done


def compose_line(kvsim, policy):
    """The compose(...) line of a policy, as `kvsim help` shows it."""
    if policy.startswith("compose("):
        return policy
    try:
        shown = _call([kvsim, "help", policy]).stdout
    except OSError as error:
        raise UserError(f"cannot run {kvsim}: {error.strerror}; build it, or name it with --kvsim") from None
    for row in shown.splitlines():
        if row.strip().startswith("in parts"):
            return row.strip()[len("in parts") :].strip()
    raise UserError(f"{policy} does not decompose into parts, so none of them can be replaced")


def _lengths(traces):
    """(longest prompt, fewest decode steps) of the recordings."""
    lengths = []
    for path in traces:
        try:
            with h5py.File(path, "r") as file:
                lengths.append((int(file.attrs["prompt_len"]), int(file.attrs["decode_len"])))
        except (OSError, KeyError) as error:
            raise UserError(f"cannot read {path} as a trace: {error}") from None
    return max(p for p, _ in lengths), min(s for _, s in lengths)


def budget_grid(budgets, prompt, points):
    """Log-spaced budgets from an eighth of the smallest asked for up to the prompt, with those asked for among them."""
    low = max(2, budgets[0] // 8)
    spread = np.unique(np.round(np.geomspace(low, max(prompt, low + 1), points)).astype(int))
    return sorted({*spread.tolist(), *budgets})


def _replay(args, specs, grid):
    command = [args.kvsim, "run", *args.traces, "--out", os.path.join(args.out, "run"), "--no-bounds", "--yes", "--quiet"]
    for spec in specs:
        command += ["--policy", spec]
    done = _call([*command, "--budget", ",".join(map(str, grid)), "--metrics", args.y])
    if done.returncode == 3:
        raise UserError((done.stderr.strip().splitlines() or ["some variants were refused"])[0])


def curves_of(run_folder, y):
    """{trace: (budgets, [variant, layer, head, budget])} of the rows, less = better."""
    column = lambda name: run_folder.column("rows", name)  # noqa: E731
    info = dict(zip(run_folder.metric_table["name"], run_folder.metric_table["direction"]))
    if y not in info:
        raise UserError(f"{y} has no value per KV head")
    sign = -1.0 if str(info[y]) == "higher" else 1.0
    out = {}
    for trace in np.unique(column("trace")):
        rows = column("trace") == trace
        axes = [np.unique(column(n)[rows], return_inverse=True) for n in ("variant", "layer", "kv_head", "budget_tokens")]
        values = np.full([len(a[0]) for a in axes], np.nan)
        values[tuple(a[1].reshape(-1) for a in axes)] = sign * column(y)[rows]
        out[int(trace)] = axes[3][0], values
    return out, sign


def gains(run_folder, variants, budgets, y):
    """Rows (trace, part, budget, tokens used, y, gain); gain = the share of the policy's own y that goes (or comes) with the oracle."""
    curves, sign = curves_of(run_folder, y)
    specs = list(dict.fromkeys(variants.values()))
    place = {part: specs.index(spec) for part, spec in variants.items()}
    table = []
    for trace, (tokens, values) in curves.items():
        for budget in budgets:
            at = int(np.searchsorted(tokens, budget))
            found = {p: (float(values[place[p], :, :, at].mean()), float(budget)) for p in PARTS if p in place}
            uniform = values[place["uniform"]]
            found["head budgets"] = tuple(np.mean([oracle_budgets.best_mean(tokens, layer, budget) for layer in uniform], 0))
            found["layer budgets"] = oracle_budgets.best_mean(tokens, uniform.mean(1), budget)
            found["all budgets"] = oracle_budgets.best_mean(tokens, uniform.reshape(-1, len(tokens)), budget)
            if "truth, uniform" in place:
                truth = values[place["truth, uniform"]].reshape(-1, len(tokens))
                found["all of it"] = oracle_budgets.best_mean(tokens, truth, budget)
            own = found["as it is"][0]
            for part in PARTS:
                if part in found:
                    value, used = found[part]
                    gain = (own - value) / abs(own) if own else np.nan
                    table.append((str(run_folder.trace_names[trace]), part, budget, used, sign * value, gain))
    return table


def _write_csv(path, table, y):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trace", "part", "budget_tokens", "used_tokens", y, "gain"])
        writer.writerows(table)


def means(table):
    """{part: {budget: (y, gain)}}, means over the traces."""
    out = {}
    for part in PARTS:
        for budget in sorted({row[2] for row in table}):
            rows = [row[4:] for row in table if row[1] == part and row[2] == budget]
            if rows:
                out.setdefault(part, {})[budget] = tuple(np.mean(rows, 0))
    return out


def text(table, y, line):
    """The table as text: y and, in brackets, how much of it the oracle takes away (or adds, where more is better)."""
    found = means(table)
    budgets = list(found["as it is"])
    rows = [[f"{y} of {line}"], ["oracle in place of"] + [f"budget {b}" for b in budgets]]
    for part, by_budget in found.items():
        cells = [f"{v:.4g}" + ("" if part == "as it is" else f" ({100 * g:+.1f}%)") for v, g in by_budget.values()]
        rows.append([part, *cells])
    width = [max(len(r[i]) for r in rows[1:]) for i in range(len(budgets) + 1)]
    lines = [rows[0][0]]
    for row in rows[1:]:
        lines.append(row[0].ljust(width[0]) + "".join("  " + c.rjust(w) for c, w in zip(row[1:], width[1:])))
    return "\n".join(lines)


def draw(table, y, line, traces, theme):
    """Left: y against the budget with each part's oracle; right: the gain per part."""
    found = means(table)
    looks = {
        part: Look(part, style.THEMES[theme]["ink"] if k == 0 else _COLORS[k], "-", _MARKERS[k], False, False)
        for k, part in enumerate(PARTS)
    }
    page = Page(2, theme, columns=2, size=(3.5, 2.8))
    left, right = page.axes
    for part, by_budget in found.items():
        left.plot(list(by_budget), [v for v, _ in by_budget.values()], **looks[part].line(theme))
    left.set_xscale("log", base=2)
    left.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(list(found["as it is"])))
    left.xaxis.set_major_formatter(matplotlib.ticker.FixedFormatter([str(b) for b in found["as it is"]]))
    left.set_xlabel("budget [tokens per KV head]")
    page.y_label(left, style.axis_label(y))
    shown = [p for p in found if p != "as it is"]
    width = 0.8 / len(shown)
    for k, part in enumerate(shown):
        at = np.arange(len(found[part])) + (k - (len(shown) - 1) / 2) * width
        right.bar(at, [100 * g for _, g in found[part].values()], 0.92 * width, color=looks[part].color)
    right.axhline(0, color=style.THEMES[theme]["faint"], linewidth=0.8)
    right.set_xticks(range(len(found["as it is"])), [str(b) for b in found["as it is"]])
    right.set_xlabel("budget [tokens per KV head]")
    page.y_label(right, "gain over the policy as it is [%]")
    page.legend([looks[p] for p in found], "with the oracle in place of")
    page.notes(
        f"policy: {line}",
        f"{', '.join(traces)}" if len(traces) < 4 else f"{len(traces)} traces",
        "budgets in hindsight: greedy over the measured curves",
    )
    page.title("What each part of the policy is worth")
    return page.finish()
