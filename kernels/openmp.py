"""Makes idle OpenMP threads sleep, unless the user has chosen otherwise.

torch's threads spin while they wait, which saves a few microseconds per call on an idle machine. Beside one busy
process, as on every laptop, a spinning thread holds the core that another thread of the same call needs: two threads
then take 25 times as long as on an idle machine. With sleeping threads it is 1.1 to 1.2 times.
"""

from __future__ import annotations

import os
import sys

#: The variables that control it in GNU's, LLVM's and Intel's OpenMP: if one is set, the user has chosen.
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def set_passive_wait() -> None:
    """Make the threads of this process and its children sleep while they wait.

    OpenMP reads its variables when it is loaded, with torch: this has no effect later, or if the user has chosen.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
