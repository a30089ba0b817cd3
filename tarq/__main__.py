"""``python -m tarq``."""

from tarq.terminal.cli import main

main()
