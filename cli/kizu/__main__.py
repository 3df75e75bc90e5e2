"""`python -m kizu`."""

from kizu.cli import main

main()
