"""``benchmarks`` is no installed package: its folder's parent goes behind everything else on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
