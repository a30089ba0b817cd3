"""Every form of the Triton kernels that a launch can ask for, to be compiled without a GPU.

`tests/kernels/test_triton_build.py` compiles them for each architecture, `benchmarks/tune_w4_linear.py` those of its
candidates ahead of measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, product
from typing import Any, NamedTuple

import torch
from tarq.kernels.gram.triton import plan as gram_plan
from tarq.kernels.gram.triton.kernels import finish_kernel, gram_kernel
from tarq.kernels.gram.triton.launch import FINISH_BLOCK
from tarq.kernels.group_quantize.triton.kernels import refine_kernel
from tarq.kernels.group_quantize.triton.launch import NARROWEST, WIDEST, constants
from tarq.kernels.triton_runtime import specialization
from tarq.kernels.w4_linear.triton.kernels import dequantize_kernel, gemm_kernel, gemv_kernel, reduce_kernel
from tarq.kernels.w4_linear.triton.launch import DEQUANTIZE_BLOCK, DEQUANTIZE_WARPS, REDUCE_BLOCK, UNIT
from tarq.kernels.w4_linear.triton.plan import MAX_SPLIT, Plan, tiles

ELEMENTS, HALVES = ("bf16", "fp16", "fp32"), ("bf16", "fp16")


class Compilation(NamedTuple):
    """A kernel and all that it is compiled for: what ``triton.compiler.ASTSource`` and ``triton.compile`` take."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[tuple[int], int | None]
    attrs: dict[tuple[int], list]
    options: dict[str, int]


def compiled(one: Compilation, capability: tuple[int, int]) -> Any:
    """Triton's compiled kernel, for a chip that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(fn=one.kernel, signature=one.signature, constexprs=one.constexprs, attrs=one.attrs)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    return triton.compile(source, target=target, options=one.options)


# ---- gram --------------------------------------------------------------------------------------------------


def of_gram(capability: tuple[int, int]) -> Iterator[Compilation]:
    """Every specialization a launch of ``gram`` can ask for on a chip."""
    for dtype, element in gram_plan.DTYPES.items():
        for weighted, routed in ((False, False), (False, True), (True, True)):
            for configuration in gram_plan.candidates(torch.float32 if weighted else dtype, capability):
                for pair in (False, True):
                    constants = gram_plan.options(configuration, routed) | {"VECTOR": 16 // dtype.itemsize}
                    types = {
                        "x_ptr": f"*{element}",
                        "y_ptr": f"*{element}" if pair else None,
                        "weight_ptr": "*fp32" if weighted else None,
                        "order_ptr": "*i32" if routed else None,
                        "bounds_ptr": "*i32" if routed else None,
                        "partial_ptr": "*fp32",
                        "scale": "fp32",
                    }
                    kind = ("_weighted" if weighted else "_routed" if routed else "") + ("_pair" if pair else "")
                    name = f"gram_{element}_{configuration.block}{kind}"
                    yield _compilation(name, gram_kernel, types, constants, unaligned=("bounds_ptr",))
    for symmetric, accumulate, in_place in (
        (True, False, False),
        (True, False, True),
        (True, True, False),
        (False, False, False),
        (False, True, False),
    ):
        constants = {
            "SYMMETRIC": symmetric,
            "ACCUMULATE": accumulate,
            "IN_PLACE": in_place,
            "BLOCK": FINISH_BLOCK,
            "num_warps": 4,
        }
        types = {"partial_ptr": "*fp32", "out_ptr": "*fp32"}
        for unaligned in (("out_ptr",), ()) if accumulate else ((),):
            flags = (symmetric, "symmetric"), (accumulate, "add"), (in_place, "in_place"), (unaligned, "unaligned")
            name = "_".join(["finish", *(word for flag, word in flags if flag)])
            yield _compilation(name, finish_kernel, types, constants, unaligned=unaligned)


# ---- group_refine ------------------------------------------------------------------------------------------


def of_group_refine() -> Iterator[Compilation]:
    """Every specialization a launch of ``group_refine`` can ask for; the same on every chip."""
    widths = [1 << i for i in range(NARROWEST.bit_length() - 1, WIDEST.bit_length())]
    # Only a group wider than a launch has its scale refitted elsewhere.
    for scale, (width, refit) in product(ELEMENTS, [(WIDEST, False), *((width, True) for width in widths)]):
        types = {f"{name}_ptr": "*fp32" for name in ("gradient", "hessian", "error", "level", "zero")}
        types |= {"scale_ptr": f"*{scale}", "change_ptr": "*fp64"}
        types |= dict.fromkeys(("max_code", "least", "largest"), "fp32")
        yield _named("refine", refine_kernel, types, constants(width, refit))


# ---- w4_linear ---------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """What a kernel is specialized for besides its tile.

    - ``dtype``, ``scale``: of x, of the scales
    - ``groups``: in a K block
    - ``asymmetric``: zero points other than 8
    - ``partial``: partial sums in place of a result, where K can be split; without a bias
    - ``bias``: its dtype, or None
    - ``blocks``: K blocks in a group; any number but 1 is the same kernel
    - ``n_unit``: what N is counted in
    """

    dtype: str
    scale: str
    groups: int
    asymmetric: bool
    partial: bool
    bias: str | None = "fp16"
    blocks: int = 1
    n_unit: int = UNIT


#: Together they have every branch of the kernels.
VARIANTS = (
    Variant("fp16", "fp16", 1, True, False, "fp16"),
    Variant("bf16", "bf16", 4, True, False, None),
    Variant("fp16", "fp16", 1, False, True, "fp32", blocks=2, n_unit=1),
)


def _all_variants() -> Iterator[Variant]:
    """All that matters while K is summed, each with the next of the ways to end, which do not depend on it."""
    ends = list(product([(True, None), *((False, bias) for bias in (None, *ELEMENTS))], (UNIT, 1)))
    # Eleven, and dtypes by turns: each dtype meets all ten within the variants of one group a block.
    turns = cycle([*ends, ends[0]])
    loops = product(((1, 1), (1, 2), (2, 1), (4, 1)), ELEMENTS, (True, False), HALVES)
    for ((groups, blocks), scale, asymmetric, dtype), ((partial, bias), n_unit) in zip(loops, turns, strict=False):
        yield Variant(dtype, scale, groups, asymmetric, partial, bias, blocks, n_unit)


ALL_VARIANTS = tuple(_all_variants())


def of_w4_linear(
    capability: tuple[int, int], plans: Iterable[Plan] | None = None, variants: Sequence[Variant] = VARIANTS
) -> Iterator[Compilation]:
    """Every tile that can be chosen on a chip, in a few variants.

    Args:
        capability: of the chip.
        plans: others than those of the table.
        variants: with :data:`ALL_VARIANTS` it is all that a call can ask for, but that a tile is not compiled for
            every bias, unit of N and partial sums with every variant of the loop over K: for each at least once.
    """
    most_groups = tiles(capability) if plans is None else {plan: 4 for plan in plans if plan.kernel != "dense"}
    for (plan, most), variant in product(most_groups.items(), variants):
        if variant.groups > most:
            continue
        kernel, constants = gemm_kernel, {"BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n, "GROUPS": variant.groups}
        constants["N_UNIT"] = variant.n_unit
        if plan.kernel == "gemv":
            kernel, constants["LANES"] = gemv_kernel, plan.warps
        if variant.blocks == 1:
            constants["blocks"] = 1  # Triton specializes on it
        partial = variant.partial and plan.kernel == "gemm"
        types = {
            "x_ptr": f"*{variant.dtype}",
            "packed_ptr": "*i32",
            "scale_ptr": f"*{variant.scale}",
            "zero_ptr": "*i32" if variant.asymmetric else None,
            "bias_ptr": None if partial or variant.bias is None else f"*{variant.bias}",
            "y_ptr": "*fp32" if partial else f"*{variant.dtype}",
        }
        title = f"{plan.kernel} {plan.block_m}x{plan.block_n}"
        yield _named(title, kernel, types, constants | plan.options, ("k", "x_stride"))
    for dtype, bias, n_unit in dict.fromkeys((v.dtype, v.bias, v.n_unit) for v in variants):
        types = {"partial_ptr": "*fp32", "bias_ptr": bias and f"*{bias}", "y_ptr": f"*{dtype}"}
        for split in (2**i for i in range(1, MAX_SPLIT.bit_length())):
            constants = {"SPLITS": split, "BLOCK": REDUCE_BLOCK, "N_UNIT": n_unit}
            yield _named("reduce", reduce_kernel, types, constants)
    # A float32 x is always dense.
    dense = dict.fromkeys((dtype, v.scale, v.asymmetric, v.n_unit) for v in variants for dtype in (v.dtype, "fp32"))
    for (dtype, scale, asymmetric, n_unit), k_unit, prepacked in product(dense, (UNIT, 1), (True, False)):
        types = {
            "packed_ptr": "*i32",
            "scale_ptr": f"*{scale}",
            "zero_ptr": "*i32" if asymmetric else None,
            "weight_ptr": f"*{dtype}",
        }
        constants = {"BLOCK_N": DEQUANTIZE_BLOCK[0], "BLOCK_COLUMNS": DEQUANTIZE_BLOCK[1], "N_UNIT": n_unit}
        constants |= {"K_UNIT": k_unit, "PREPACKED": prepacked, "num_warps": DEQUANTIZE_WARPS}
        yield _named("dequantize", dequantize_kernel, types, constants)


def _named(
    title: str, kernel: Any, types: dict[str, str | None], constants: dict[str, int], multiples: Sequence[str] = ()
) -> Compilation:
    """A compilation, named by the title and everything in which it differs from others of this title."""
    details = [f"{name.removesuffix('_ptr')} {kind and kind.removeprefix('*')}" for name, kind in types.items()]
    details += [f"{name} {value}" for name, value in constants.items()]
    return _compilation(f"{title}: {', '.join(details)}", kernel, types, constants, multiples=multiples)


def _compilation(
    name: str,
    kernel: Any,
    types: dict[str, str | None],
    constants: dict[str, int],
    *,
    multiples: Sequence[str] = (),
    unaligned: Sequence[str] = (),
) -> Compilation:
    own = {key: value for key, value in constants.items() if key in kernel.arg_names}
    options = {key: value for key, value in constants.items() if key not in kernel.arg_names}
    made = specialization(kernel, types, own, multiples=multiples, unaligned=unaligned)
    return Compilation(name, kernel, *made, options)
