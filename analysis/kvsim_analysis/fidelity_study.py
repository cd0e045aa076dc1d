"""How far can the replay be trusted? The study behind analysis/studies/fidelity.md, in one command.

Twelve prompts of four kinds are recorded with SmolLM2 (--sensitivity 8 --output-proj), the policies of analysis/studies/fidelity.ini are replayed
at 10%, 20% and 40% of the prompt, and the model itself runs with every kept set (kvsim-judge). Printed are rank correlations of every predictor
with the true divergence, per prompt and on the mean over prompts, for the half of the prompts that predictors may be tuned on and for the
half that they may not. --out keeps everything; the same command continues where it was stopped. Two hours at most on two cores; 3 GB of disk.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time

from . import fidelity_prompts
from .errors import UserError

BUDGETS = "10%,20%,40%"
QUICK_POLICIES = ("snapkv", "streaming_llm", "h2o", "knorm", "tova", "expected_attention", "decode:h2o", "random")
_RECORD = ("--decode", "64", "--ignore-eos", "--dtype", "float32", "--sensitivity", "8", "--output-proj")
_QUICK_RECORD = ("--decode", "8", *_RECORD[2:])


def parser():
    made = argparse.ArgumentParser(
        prog="fidelity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with essay-*.txt, longbench-multi-news.jsonl, ruler-niah-multikey-4k.jsonl, gsm8k.jsonl",
    )
    made.add_argument(
        "--out",
        metavar="DIR",
        help="folder for recordings, runs and tables (default: runs/fidelity, with --quick runs/fidelity-quick)",
    )
    made.add_argument(
        "--quick", action="store_true", help=f"2 prompts, {len(QUICK_POLICIES)} policies, 8 steps: does it work?"
    )
    made.add_argument("--show", action="store_true", help="only print the tables of what is finished")
    made.add_argument(
        "--jobs",
        type=int,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="prompts at a time, one thread each (default: 2)",
    )
    made.add_argument("--kvsim", metavar="FILE", help="the program (default: build/kvsim)")
    made.add_argument("--recorder", metavar="DIR", help="folder of kvsim-record and kvsim-judge (default: .venv/bin)")
    made.add_argument("--theme", choices=("light", "dark"), default="light")
    return made


def run(arguments, root):
    """Runs what is not yet done and returns the text of the tables. `root` is the repository's folder."""
    args = parser().parse_args(arguments)
    args.out = args.out or os.path.join("runs", "fidelity-quick" if args.quick else "fidelity")
    args.kvsim = os.path.abspath(args.kvsim or os.path.join(root, "build", "kvsim"))
    args.recorder = os.path.abspath(args.recorder or os.path.join(root, ".venv", "bin"))
    args.root = root
    prompts = fidelity_prompts.PROMPTS[:2] if args.quick else fidelity_prompts.PROMPTS
    if not args.show:
        _check_programs(args)
        _measure_all(args, prompts)
    from . import fidelity_tables  # late: the tables need finished runs, the long part must not wait for matplotlib

    finished = [p for p in prompts if _finished(args, p)]
    if not finished:
        raise UserError(f"{args.out} holds no finished prompt; run without --show")
    return fidelity_tables.study(args.out, finished, len(prompts), args.theme)


def _check_programs(args):
    for path in (args.kvsim, *(os.path.join(args.recorder, name) for name in ("kvsim-record", "kvsim-judge"))):
        if not os.access(path, os.X_OK):
            raise UserError(
                f"no program {path}; ./demo --record builds and installs all three, or name them with --kvsim and --recorder"
            )


def _measure_all(args, prompts):
    """Every prompt on its own, the first fault ends the study; what is finished stays."""
    for folder in ("prompts", "traces", "log"):
        os.makedirs(os.path.join(args.out, folder), exist_ok=True)
    for prompt in prompts:
        _write(os.path.join(args.out, "prompts", f"{prompt.name}.txt"), fidelity_prompts.text_of(prompt, args.data))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
        waiting = {pool.submit(_measure, args, prompt): prompt for prompt in prompts}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(waiting), 1):
                future.result()
                minutes = (time.monotonic() - began) / 60
                print(
                    f"fidelity: {waiting[future].name} finished, {done} of {len(prompts)}, {minutes:.0f} min",
                    file=sys.stderr,
                    flush=True,
                )
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


def run_folder(out, prompt):
    """Where the results of a prompt's replay lie."""
    return os.path.join(out, "runs", prompt.name)


def _commands(args, prompt):
    """What is done for one prompt, in order: (name, command)."""
    path = lambda folder, ending: os.path.join(args.out, folder, prompt.name + ending)  # noqa: E731
    record, judge = (os.path.join(args.recorder, name) for name in ("kvsim-record", "kvsim-judge"))
    recorded = _QUICK_RECORD if args.quick else _RECORD
    # --extend: more lines in the .ini add policies to what is there.
    replayed = ("--no-bounds", "--extend", "--threads", "1", "--budget", BUDGETS, "--config", _config(args))
    return (
        ("record", [record, "--prompt", path("prompts", ".txt"), *recorded, "-o", path("traces", ".h5"), "--quiet"]),
        (
            "replay",
            [args.kvsim, "run", path("traces", ".h5"), *replayed, "--quiet", "--out", run_folder(args.out, prompt)],
        ),
        ("judge", [judge, run_folder(args.out, prompt), "--quiet"]),
    )


def _config(args):
    """The study's .ini; for --quick a copy with some of its policies."""
    source = os.path.join(args.root, "analysis", "studies", "fidelity.ini")
    if not args.quick:
        return source
    path = os.path.join(args.out, "quick.ini")
    with open(source, encoding="utf-8") as file:
        lines = [
            line
            for line in file
            if not line.startswith("policy = ") or line[len("policy = ") :].strip() in QUICK_POLICIES
        ]
    _write(path, "".join(lines))
    return path


def _measure(args, prompt):
    """Records, replays and judges one prompt; a step that was done before on the same text with the same commands, and from the replay on
    with the same policies, is not done again."""
    with open(os.path.join(args.out, "prompts", f"{prompt.name}.txt"), "rb") as file:
        done = {"prompt": hashlib.sha256(file.read()).hexdigest()}
    for name, command in _commands(args, prompt):
        if name == "replay":
            done["policies"] = _read(_config(args))
        done[name] = command[1:]
        stamp = _stamp(args, prompt, name)
        text = json.dumps(done, indent=1)
        if os.path.exists(stamp) and _read(stamp) == text:
            continue
        if name == "record":  # a replay does not go on with another recording
            shutil.rmtree(run_folder(args.out, prompt), ignore_errors=True)
        _call(command, os.path.join(args.out, "log", f"{prompt.name}-{name}.log"))
        _write(stamp, text)


def _finished(args, prompt):
    return os.path.exists(_stamp(args, prompt, "judge"))


def _stamp(args, prompt, name):
    return os.path.join(args.out, "log", f"{prompt.name}-{name}.done")


def _call(command, log):
    """Runs a program on one thread: several prompts run side by side. Raises UserError with the last line that it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    began = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        print(" ".join(command), file=file, flush=True)
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
        print(f"exit code {code}, {time.monotonic() - began:.1f} s", file=file)
    if code == 3:
        print(f"fidelity: some variants were refused, {log} says why", file=sys.stderr, flush=True)
    elif code != 0:
        said = _read(log).strip().splitlines()[-2:]
        raise UserError(f"{os.path.basename(command[0])} ended with {code}: {said[0]} (all of it in {log})")


def _read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _write(path, text):
    """Writes a file whole or not at all; one that says the same already is left alone."""
    if os.path.exists(path) and _read(path) == text:
        return
    temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.part"  # threads write the same quick.ini
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
