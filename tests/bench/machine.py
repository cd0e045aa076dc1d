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


class Neighbours:
    """What others took of the processor since this object was made, as a share of all cores."""

    def __init__(self):
        self.start, self.busy, self.own = time.perf_counter(), self.busy_seconds(), self.own_seconds()

    @staticmethod
    def busy_seconds():
        """Of all cores: everything but idle and waiting, time stolen by the host included, guests not counted twice."""
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, soft, steal = map(int, file.readline().split()[1:9])
        return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def own_seconds():
        return sum(os.times()[:4])

    def share(self):
        taken = self.busy_seconds() - self.busy - (self.own_seconds() - self.own)
        return max(0.0, taken / (time.perf_counter() - self.start) / os.cpu_count())


QUIET = 0.05  # share of the machine that others may take


def describe(neighbours=None):
    """Processor, clock as the system states it now, cores, and what others took since `neighbours` was made, in one line."""
    clock = cpu_info("cpu MHz")
    clock = f" at {float(clock) / 1000:.2f} GHz" if clock else ""
    line = f"machine: {cpu_info('model name') or 'unknown processor'}{clock}, {len(os.sched_getaffinity(0))} cores"
    if neighbours is None:
        return line
    share = neighbours.share()
    busy = "" if share < QUIET else " (BUSY: wall times are upper bounds, look at processor times)"
    return f"{line}, others took {share:.0%} of them{busy}"


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
