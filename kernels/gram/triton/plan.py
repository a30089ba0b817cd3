"""Which tiles ``gram`` uses and into how many parts its rows are split: a model that counts rows of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

#: Rows between two flushes of the tensor cores' accumulator.
CHUNK = 256

#: Tile rows that share their columns' loads through L2: with 8, a wave of 132 tiles reads about 8 + 16 blocks.
SUPERTILE = 8

#: Bytes of partial sums a launch may ask for, for each group.
PARTIAL_BYTES = 1 << 29

#: Cost of a program besides its rows, in rows of a tile (estimates): filling the pipeline and writing the tile; where
#: rows are split, reading it again.
FIXED_ROWS, SPLIT_ROWS = 224, 160

#: Parts that rows may be split into.
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

#: Dtypes that the kernels take, and their names in Triton.
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Configuration:
    """How one program of ``gram_kernel`` works.

    Args:
        bits: width of the operands of the tensor cores, 16 or 32.
        block: side of its tile.
        depth: rows it loads at once.
        warps: warps of the program.
        stages: blocks of rows in flight, as Triton's ``num_stages``.
        operands: where the tensor cores it is for read theirs: ``shared`` memory (wgmma, tcgen05), ``registers``
            (mma.sync; it fits the shared memory of compute capability 8.6 and 12) or ``either``.
        rate: multiply-adds per second of one SM, relative to the other configurations of the same width.
    """

    bits: int
    block: int
    depth: int
    warps: int
    stages: int
    operands: str
    rate: float = 1.0


CONFIGURATIONS = (
    # wgmma m64n128k16 in each of two warpgroups; both accumulators are 128 registers a thread: one program an SM.
    Configuration(bits=16, block=128, depth=64, warps=8, stages=4, operands="shared"),
    Configuration(bits=16, block=128, depth=32, warps=8, stages=5, operands="registers"),
    # Twice the bytes a multiply-add; wastes less of a tile on narrow inputs.
    Configuration(bits=16, block=64, depth=64, warps=4, stages=3, operands="either", rate=0.5),
    # Splitting float32 in two takes registers; where operands are held in them too, half the rows at once.
    Configuration(bits=32, block=64, depth=32, warps=4, stages=3, operands="shared"),
    Configuration(bits=32, block=64, depth=16, warps=4, stages=4, operands="registers"),
)


@dataclass(frozen=True)
class Plan:
    """A configuration and into how many parts the rows are split."""

    configuration: Configuration
    splits: int


def candidates(dtype: torch.dtype, capability: tuple[int, int]) -> list[Configuration]:
    """The configurations :func:`choose` picks from, for operands of this dtype on this chip."""
    operands = "shared" if capability[0] in (9, 10, 11) else "registers"
    return [c for c in CONFIGURATIONS if c.bits == 8 * dtype.itemsize and c.operands in (operands, "either")]


@lru_cache(maxsize=1024)
def choose(n: int, k: int | None, rows: int, dtype: torch.dtype, capability: tuple[int, int], sm_count: int) -> Plan:
    """The plan whose slowest SM is done first, by a model that counts rows of tiles.

    Args:
        n: columns of x.
        k: columns of y; None for the symmetric product.
        rows: rows to sum, of all groups: the model takes the largest group for the whole.
        dtype: of the operands of the tensor cores, so float32 where real weights multiply in.
        capability: compute capability of the chip, ``(9, 0)``.
        sm_count: its streaming multiprocessors.
    """

    def cost(plan: Plan) -> float:
        configuration, splits = plan.configuration, plan.splits
        waves = -(-tiles(n, k, configuration.block) * splits // sm_count)
        length = -(-rows // splits) + FIXED_ROWS + (SPLIT_ROWS if splits > 1 else 0)
        return waves * length * configuration.block**2 / configuration.rate

    plans = [
        Plan(configuration, splits)
        for configuration in candidates(dtype, capability)
        for splits in SPLITS
        if splits == 1 or (splits * CHUNK < rows + CHUNK and 4 * splits * (k or n) * n <= PARTIAL_BYTES)
    ]
    return min(plans, key=cost)


def tiles(n: int, k: int | None, block: int) -> int:
    across = -(-n // block)
    return across * (across + 1) // 2 if k is None else across * -(-k // block)


def options(configuration: Configuration, routed: bool) -> dict[str, int]:
    """Constants and compiler options of ``gram_kernel``."""
    return {
        "BLOCK": configuration.block,
        "DEPTH": configuration.depth,
        "CHUNK": CHUNK,
        "SUPERTILE": SUPERTILE,
        "num_warps": configuration.warps,
        # The indices are loaded ahead of the rows they name: as many stages again, for the same blocks in flight.
        "num_stages": 2 * configuration.stages - 1 if routed else configuration.stages,
    }
