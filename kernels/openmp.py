"""How OpenMP's threads wait for work: asleep, unless the user has chosen.

torch's threads spin while they wait, which gains some microseconds a call on an idle machine. Beside one busy process,
as on every laptop, a spinning thread holds the core that another thread of the same call needs: two threads then take
25 times as long as alone. Asleep they take 1.1 to 1.2 times as long.
"""

from __future__ import annotations

import os
import sys

#: What decides it, in GNU's, LLVM's and Intel's OpenMP: whoever sets one of them has chosen.
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep() -> None:
    """Have the threads of this process, and of those that it starts, sleep while they wait.

    OpenMP reads its variables when it is loaded, with torch: later, and where the user has chosen, nothing changes.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
