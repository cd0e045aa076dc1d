"""What the benchmark scripts share: the machine's name and load, runs with their processor time and memory, medians, measures."""
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass


@dataclass
class Run:
    """One finished command: wall and processor seconds, peak resident bytes."""

    wall: float
    processor: float
    peak: int


@dataclass
class Measure:
    """One number of a benchmark: the median, the smallest and the largest of its repeats. `line` names it for tests/bench/run."""

    line: str
    value: float
    low: float
    high: float
    repeats: int
    note: str = ""


def measure(line, values, note=""):
    return Measure(line, median(values), min(values), max(values), len(values), note)


def write_measures(path, measures):
    """For tests/bench/run; nothing where no path is given."""
    if path:
        with open(path, "w") as file:
            json.dump([asdict(one) for one in measures], file, indent=1)


def read_measures(path):
    with open(path) as file:
        return [Measure(**one) for one in json.load(file)]


def fail(text):
    print(f"{os.path.basename(sys.argv[0])}: {text}", file=sys.stderr)
    sys.exit(2)


def run(command, quiet=True):
    """Runs a command to its end; a failing one ends the benchmark."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL if quiet else None)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        fail(f"'{' '.join(command)}' ended with {child.returncode}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def cpu_info(field):
    """The first such line of /proc/cpuinfo, or an empty text."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(field):
                return line.split(":", 1)[1].strip()
    return ""


def busy():
    return os.getloadavg()[0] >= 0.5


def describe():
    """Processor, clock as the system states it now, cores and load, in one line."""
    clock = cpu_info("cpu MHz")
    clock = f" at {float(clock) / 1000:.2f} GHz" if clock else ""
    warning = " (BUSY: wall times are upper bounds, look at processor times)" if busy() else ""
    return (f"machine: {cpu_info('model name') or 'unknown processor'}{clock}, {len(os.sched_getaffinity(0))} cores, "
            f"load {os.getloadavg()[0]:.2f}{warning}")


def median(values):
    return statistics.median(values)


def spread(values):
    return f"{min(values):.2f}..{max(values):.2f}"


def program(path):
    if not os.access(path, os.X_OK):
        fail(f"{path} is not there: build kvsim first (./demo), or name the program with --kvsim")
    return path


def default_program():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return os.path.join(root, "build", "kvsim")
