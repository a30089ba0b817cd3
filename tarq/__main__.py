"""``python -m tarq``."""

from .cli import main

main()
