"""``QuantLinear``: ``nn.Linear`` whose weight stays packed, with the tensors and names of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from tarq.kernels.scheme import Scheme
from tarq.kernels.w4_linear import dequantize, pack, pack_zeros, packed_words, repack, w4_linear, w4_linear_int8
from tarq.kernels.w4_linear.reference import w4_linear as reference


class QuantLinear(nn.Module):
    """A linear layer whose weight is what compressed-tensors' ``pack-quantized`` layout holds, never expanded.

    Its state dict is what the checkpoint holds, under the same names:

    - ``weight_packed`` int32 [N, ceil(K · bits / 32)]
    - ``weight_scale`` [N, ceil(K / group_size)] in ``scale_dtype``
    - ``weight_shape`` int64 [2]: N, K
    - ``weight_zero_point`` int32 [ceil(N · bits / 32), ceil(K / group_size)], asymmetric schemes only
    - ``bias`` [N], if there is one

    2, 3 and 4 bits run on the ``w4_linear`` kernels, 2 and 3 with their codes held in 4 bits each. 8 bits are right
    but not accelerated: every call expands the weight.

    Casting the module (``.to(dtype)``, ``.half()``, ``.bfloat16()``) casts the bias only. Scales keep the dtype
    they were saved in, because rounding them would change the weights; loading a state dict adopts the dtype
    of its scales. Inside an autocast region activations are cast as ``nn.Linear`` casts them.

    In memory the weights lie as the kernels read them (:meth:`prepack`, which packing, loading and moving do): 2- and
    3-bit codes in nibbles, and on a GPU in the order of its kernels. The state dict stays as above, bit for bit.
    Whoever sets the buffers by hand sets them as above and then calls :meth:`prepack`.

    Nothing here is trainable: packed weights, scales and bias are buffers. Gradients with respect to the input
    are computed (so layers around this one can be trained), through a weight expanded for the backward pass.

    Setting ``int8_activations`` on a layer of at most 4 bits rounds its input to 8 bits, group by group
    (:func:`~tarq.kernels.w4_linear.w4_linear_int8`): about twice as fast on a CPU, outputs off by about 0.7 % of
    their norm, and without gradients. It is not part of the state dict.

    There is no ``weight`` attribute: a dense copy made unnoticed would undo the packing. Use
    :meth:`dequantize`.

    Args:
        in_features: K.
        out_features: N.
        scheme: bits, group size and symmetry.
        bias: whether the layer has one.
        scale_dtype: float16, bfloat16 or float32; the bias starts in it too.
        device: where the buffers are; they are not initialised (``"meta"`` allocates nothing).

    Raises:
        ValueError: ``scale_dtype`` is none of the three.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: Tensor
    weight_zero_point: Tensor | None
    bias: Tensor | None
    int8_activations: bool = False
    prepacked: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: Scheme,
        bias: bool = True,
        scale_dtype: torch.dtype = torch.float16,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if scale_dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"scale_dtype must be float16, bfloat16 or float32, not {scale_dtype}")
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        groups = -(-in_features // scheme.group_size)

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        words = packed_words(in_features, scheme.bits)
        self.register_buffer("weight_packed", empty(out_features, words, dtype=torch.int32))
        self.register_buffer("weight_scale", empty(out_features, groups, dtype=scale_dtype))
        self.register_buffer("weight_shape", torch.tensor([out_features, in_features], device=device))
        zeros = None
        if not scheme.symmetric:
            zeros = empty(packed_words(out_features, scheme.bits), groups, dtype=torch.int32)
        self.register_buffer("weight_zero_point", zeros)
        self.register_buffer("bias", empty(out_features, dtype=scale_dtype) if bias else None)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        scheme: Scheme,
        bias: Tensor | None = None,
    ) -> QuantLinear:
        """Pack unsigned codes into a layer on their device.

        Args:
            codes: uint8 [N, K], each below ``2**scheme.bits``.
            scales: float16, bfloat16 or float32 [N, ceil(K / group_size)]; kept in this dtype.
            zeros: uint8 [N, ceil(K / group_size)] for an asymmetric scheme, None for a symmetric one.
            scheme: what the codes mean.
            bias: float [N] or None; kept in its dtype.

        Raises:
            ValueError: a shape or dtype is not that, a code does not fit, or ``zeros`` contradicts the scheme.
        """
        if (zeros is None) != scheme.symmetric:
            wanted = "None" if scheme.symmetric else "a tensor"
            raise ValueError(f"zeros must be {wanted} for a scheme with symmetric={scheme.symmetric}")
        packed = pack(codes, scheme.bits)
        rows, columns = codes.shape
        groups = (rows, -(-columns // scheme.group_size))
        for name, tensor, shape in (("scales", scales, groups), ("zeros", zeros, groups), ("bias", bias, (rows,))):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
        layer = cls(columns, rows, scheme, bias=False, scale_dtype=scales.dtype, device="meta")
        layer.weight_packed = packed
        layer.weight_scale = scales.detach().contiguous()
        layer.weight_shape = torch.tensor([rows, columns], device=codes.device)
        layer.weight_zero_point = None if zeros is None else pack_zeros(zeros, scheme.bits)
        layer.bias = None if bias is None else bias.detach().clone()
        layer.prepack()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., K] to [..., N] in the dtype of ``x`` (under autocast, in autocast's dtype)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # The dictionary, not attributes: nn.Module looks buffers up last, half a microsecond each.
        tensors = self._buffers
        layer = (
            tensors["weight_packed"],
            tensors["weight_scale"],
            tensors["weight_zero_point"],
            tensors["bias"],
            self.in_features,
            self.scheme.group_size,
        )
        if self.scheme.bits == 4 or self.prepacked:
            product = w4_linear_int8 if self.int8_activations else w4_linear
            return product(x, *layer)  # type: ignore[arg-type]
        return reference(x, *layer, bits=self.scheme.bits)  # type: ignore[arg-type]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight [N, K], computed in the scales' dtype, then cast to ``dtype`` if one is given."""
        weight = dequantize(
            *self._as_stored(),
            self.in_features,
            self.scheme.group_size,
            self.scheme.bits,
        )
        return weight if dtype is None else weight.to(dtype)

    def packed_bytes(self) -> int:
        """Bytes that stand for the weight in a checkpoint: codes, scales, zero points and shape, not the bias."""
        bits, groups = self.scheme.bits, self.weight_scale.numel() // self.out_features
        words = self.out_features * packed_words(self.in_features, bits)
        if self.weight_zero_point is not None:
            words += packed_words(self.out_features, bits) * groups
        return words * torch.int32.itemsize + self.weight_scale.nbytes + self.weight_shape.nbytes

    def extra_repr(self) -> str:
        scheme = self.scheme
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={scheme.bits}, "
            f"group_size={scheme.group_size}, symmetric={scheme.symmetric}, "
            f"scales={str(self.weight_scale.dtype).removeprefix('torch.')}, bias={self.bias is not None}"
            + (", int8_activations=True" if self.int8_activations else "")
        )

    def prepack(self, device: torch.device | None = None) -> None:
        """Lay the weights out for the kernels of a device, the one they are on when not given.

        Codes of 2 and 3 bits go to nibbles (:func:`~tarq.kernels.w4_linear.repack`); for a GPU all of at most 4 bits
        go to the order its kernels read (:func:`tarq.kernels.w4_linear.cuda.prepack`), if Triton is installed. Where
        neither applies nothing happens. CPU kernels do not read a GPU's order.
        """
        bits, packed, zeros = self.scheme.bits, self.weight_packed, self.weight_zero_point
        gpu = (device or packed.device).type == "cuda" and find_spec("triton") is not None
        if self.prepacked or packed.is_meta or bits > 4 or (bits == 4 and not gpu):
            return
        if bits < 4:
            packed, zeros = repack(packed, zeros, self.in_features, bits, 4)
        layout = packed, self.weight_scale, zeros
        if gpu:
            from tarq.kernels.w4_linear.cuda import prepack

            layout = prepack(*layout)
        self.weight_packed, self.weight_scale, self.weight_zero_point = layout
        self.prepacked = True

    def unprepack(self) -> None:
        """Undo :meth:`prepack`."""
        self.weight_packed, self.weight_scale, self.weight_zero_point = self._as_stored()
        self.prepacked = False

    def _as_stored(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, scales and zero points as the checkpoint has them."""
        packed, scale, zeros = self.weight_packed, self.weight_scale, self.weight_zero_point
        if self.prepacked and packed.dim() == 3:  # a GPU's order
            from tarq.kernels.w4_linear.cuda import Prepacked, unprepack

            packed, scale, zeros = unprepack(Prepacked(packed, scale, zeros), self.in_features)
        if self.prepacked and self.scheme.bits < 4:
            packed, zeros = repack(packed, zeros, self.in_features, 4, self.scheme.bits)
        return packed, scale, zeros

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        self.unprepack()
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype:  # a cast, which is not for scales: see the class docstring
            self.weight_scale = scale.to(self.weight_scale.device)
        self.prepack()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.prepacked:
            names = "weight_packed", "weight_scale", "weight_zero_point"
            for name, tensor in zip(names, self._as_stored(), strict=True):
                if tensor is not None:
                    destination[prefix + name] = tensor

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.unprepack()
        scale = state_dict.get(f"{prefix}weight_scale")
        if scale is not None and scale.dtype != self.weight_scale.dtype:
            self.weight_scale = torch.empty_like(self.weight_scale, dtype=scale.dtype)
        shape = state_dict.get(f"{prefix}weight_shape")
        expected = [self.out_features, self.in_features]
        if shape is not None and not shape.is_meta and shape.tolist() != expected:
            # Words are padded, so widths such as 127 and 128 pack alike: only this tells them apart.
            errors = args[-1]
            errors.append(f"{prefix}weight_shape is {shape.tolist()}, but this layer is {expected}")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.prepack()


def use_int8_activations(model: nn.Module) -> int:
    """Have each :class:`QuantLinear` that can round its input to 8 bits; returns how many do.

    It takes at most 4 bits a weight and groups that the kernel has: 32, 64, a multiple of 128, or all inputs. The
    other layers (groups of 16 where widths are no multiple of 32) go on as exact as they were.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantLinear) and _takes_int8(m)]
    for layer in layers:
        layer.int8_activations = True
    return len(layers)


def _takes_int8(layer: QuantLinear) -> bool:
    group = layer.scheme.group_size
    fits = group in (32, 64) or group % 128 == 0 or group >= layer.in_features
    return layer.scheme.bits <= 4 and fits
