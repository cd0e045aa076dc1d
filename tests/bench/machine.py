"""What the benchmark scripts share: the machine's name and load, runs with their processor time and memory, medians."""
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass
class Run:
    """One finished command: wall and processor seconds, peak resident bytes."""

    wall: float
    processor: float
    peak: int


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


def describe():
    """Processor, cores and load, in one line."""
    name = "unknown processor"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    load = os.getloadavg()[0]
    busy = "" if load < 0.5 else " (BUSY: wall times are upper bounds, look at processor times)"
    return f"machine: {name}, {len(os.sched_getaffinity(0))} cores, load {load:.2f}{busy}"


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
