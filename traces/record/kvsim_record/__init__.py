"""Records one run of a Hugging Face decoder (queries, keys, values of every layer) as a kvsim trace."""

__version__ = "1.0.0"

FORMAT_NAME = "kvsim-trace"
FORMAT_VERSION = 1
