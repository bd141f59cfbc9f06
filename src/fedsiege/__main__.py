"""`python -m fedsiege` is the `fedsiege` command."""

from fedsiege.cli import main

main()
