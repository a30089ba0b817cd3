"""``tarq bench w4_linear``, with whatever options follow."""

import sys

from tarq.terminal.cli import main

sys.argv[1:1] = ["bench", "w4_linear"]
main()
