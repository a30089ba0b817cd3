"""How a product is computed on a GPU: the kernel and the tile, chosen by tokens, by the layer's size and by the chip.

``regimes.json`` holds, for each chip and number of tokens, the plan of a few layers. A chip that was measured has the
fastest of all candidates for each of them (``benchmarks/tune_w4_linear.py``); the others' are estimates, and marked so.
Another layer takes the plan of the nearest of them.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .layout import BLOCK_K

#: Most programs that share the K blocks of a tile.
MAX_SPLIT = 16

#: Fewest K blocks worth a program of their own: its partial sums cost about as much traffic as one block.
MIN_SPLIT_BLOCKS = 2

#: What a factor of two in the number of inputs weighs against one of outputs when layers are compared: it decides
#: whether K is split. Of 1, 2 and others tried on an H200, each layer planned from the other four, 2 loses least.
INPUTS_WEIGH = 2


class Plan(NamedTuple):
    """How a product is computed.

    - ``kernel``: ``gemv``, ``gemm`` or ``dense``, which has no other fields
    - ``block_m``, ``block_n``: tokens and rows of W of a tile
    - ``warps``, ``stages``: of a program, as Triton's ``num_warps`` and ``num_stages``
    - ``split_k``: programs that share the K blocks of a tile of ``gemm``, a power of two
    - ``registers``: at most, for each thread, where the assembler, left to itself, spills some to have room for one
      more program
    """

    kernel: str
    block_m: int = 0
    block_n: int = 0
    warps: int = 0
    stages: int = 0
    split_k: int = 1
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What Triton compiles a program of ``gemv`` or ``gemm`` with."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}

    def programs(self, m: int, n: int) -> int:
        """Programs of the product of ``m`` tokens with ``n`` rows."""
        return -(-n // self.block_n) * -(-m // self.block_m) * self.split_k


DENSE = Plan("dense")

#: By compute capability (``"90"``): ``measured`` (device and versions, or null for an estimate), ``sm_count`` of the
#: chip that the plans are for, and ``regimes`` in rising order of ``max_m``, each with the plans of its ``layers``.
#: ``max_groups`` of a regime, or of a layer that has its own, is the most groups in a K block: each takes a sum of its
#: own, for which the registers may not suffice.
TABLE: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "regimes.json").read_text())


def entry(capability: tuple[int, int]) -> dict[str, Any] | None:
    """The table's entry for a chip: that of the newest capability not above its own; None before 8.0."""
    known = [int(key) for key in TABLE if int(key) <= 10 * capability[0] + capability[1]]
    return TABLE[str(max(known))] if known else None


def plan_of(layer: dict[str, Any]) -> Plan:
    """The plan of a layer of the table."""
    return Plan(**{name: value for name, value in layer.items() if name in Plan._fields})


def tiles(capability: tuple[int, int]) -> dict[Plan, int]:
    """Every tile that :func:`choose` can pick on a chip, to the most groups in a K block that it is picked for."""
    found: dict[Plan, int] = {}
    for regime in (entry(capability) or {"regimes": []})["regimes"]:
        for layer in regime["layers"]:
            tile = plan_of(layer)._replace(split_k=1)
            if tile != DENSE:
                found[tile] = max(most_groups(regime, layer), found.get(tile, 0))
    return found


def most_groups(regime: dict[str, Any], layer: dict[str, Any]) -> int:
    """Groups in a K block that a layer's plan can take."""
    return layer.get("max_groups", regime["max_groups"])


@lru_cache(maxsize=4096)
def choose(m: int, n: int, k: int, capability: tuple[int, int], sm_count: int, groups: int = 1) -> Plan:
    """The plan for ``[m, k] · [n, k]ᵀ``: that of the nearest layer of the first regime with ``m ≤ max_m``.

    Dense beyond the last regime, and where no layer's plan takes so many groups.

    Args:
        m, n, k: tokens, outputs, inputs.
        capability: compute capability of the chip, ``(9, 0)``; before 8.0 everything is dense.
        sm_count: its streaming multiprocessors.
        groups: groups in a K block.
    """
    known = entry(capability) or {"regimes": []}
    regime = next((regime for regime in known["regimes"] if m <= regime["max_m"]), None)
    return DENSE if regime is None else pick(regime, known["sm_count"], m, n, k, sm_count, groups)


def pick(regime: dict[str, Any], planned_sms: int, m: int, n: int, k: int, sm_count: int, groups: int = 1) -> Plan:
    """The plan of a regime's nearest layer, rows counted by SM, so that both chips are equally full.

    K is split until there are about as many programs for each SM as the layer of the table has.
    """

    def distance(layer: dict[str, Any]) -> float:
        rows = math.log2(n / sm_count / (layer["outputs"] / planned_sms))
        return abs(rows) + INPUTS_WEIGH * abs(math.log2(k / layer["inputs"]))

    nearest = min(
        (layer for layer in regime["layers"] if groups <= most_groups(regime, layer)), key=distance, default=None
    )
    if nearest is None:
        return DENSE
    plan = plan_of(nearest)
    if plan.kernel != "gemm":
        return plan
    wanted = plan.programs(m, nearest["outputs"]) / planned_sms * sm_count
    plan, most = plan._replace(split_k=1), min(MAX_SPLIT, -(-k // BLOCK_K) // MIN_SPLIT_BLOCKS)
    one, split = plan.programs(m, n), 1
    while split * 2 <= most and abs(math.log(one * split * 2 / wanted)) <= abs(math.log(one * split / wanted)):
        split *= 2
    return plan._replace(split_k=split)
