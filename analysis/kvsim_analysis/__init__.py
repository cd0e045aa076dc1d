"""Reads the results of kvsim and draws its figures.

    import kvsim_analysis
    run = kvsim_analysis.load("runs/main")
    run.summary[run.summary.policy == "snapkv"]         # a pandas frame, names instead of numbers

The command `kvsim-plot` draws figures from the same folders; see `kvsim-plot --help`.
"""

from .errors import UserError
from .results import Results, load

__version__ = "0.1.0"
__all__ = ["Results", "UserError", "load", "__version__"]
