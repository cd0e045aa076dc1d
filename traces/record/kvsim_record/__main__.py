"""Lets `python -m kvsim_record` run the command."""

import sys

from .cli import main

sys.exit(main())
