"""`python -m benchmarks` is `fedsiege bench`."""

import sys

from fedsiege.cli import execute

sys.exit(execute(["bench", *sys.argv[1:]]))
