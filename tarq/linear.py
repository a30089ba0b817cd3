"""``QuantLinear``: ``nn.Linear`` whose weight stays packed, with the tensors and names of the checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import singledispatch
from typing import Any, Self

import torch
from torch import Tensor, nn

from tarq.kernels import w4_linear as packed_linear
from tarq.kernels.group_quantize import Quantized
from tarq.kernels.scheme import Scheme
from tarq.kernels.w4_linear import Config, PackedWeight, dequantize, pack, pack_zeros, packed_words
from tarq.kernels.w4_linear.backends import as_stored

#: The dtypes that scales may have.
SCALES = torch.float16, torch.bfloat16, torch.float32


class QuantLinear(nn.Module):
    """A linear layer whose weight stays in compressed-tensors' ``pack-quantized`` layout and is never expanded.

    Its state dict has the checkpoint's tensors under the checkpoint's names:

    - ``weight_packed`` int32 [N, ceil(K · bits / 32)]
    - ``weight_scale`` [N, ceil(K / group_size)] in ``scale_dtype``
    - ``weight_shape`` int64 [2]: N, K
    - ``weight_zero_point`` int32 [ceil(N · bits / 32), ceil(K / group_size)], asymmetric schemes only
    - ``bias`` [N], if there is one

    A ``w4_linear`` backend computes it (:mod:`tarq.kernels.w4_linear.backends`), chosen when the layer is packed,
    loaded or moved; ``TARQ_BACKEND`` is read then. ``backend`` names it; ``slow_because`` says why it is slow, if it
    is. The built-in backends have kernels for 2, 3 and 4 bits, and for 8 on a CPU; on a GPU 8 bits are correct but
    slow, as every call expands the weight.

    Casting the module (``.to(dtype)``, ``.half()``, ``.bfloat16()``) casts the bias only. Scales keep the dtype
    they were saved in, because rounding them would change the weights; loading a state dict adopts the dtype
    of its scales. Inside an autocast region activations are cast as ``nn.Linear`` casts them.

    In memory the weights have the backend's layout (:meth:`prepack`, called by packing, loading and moving). The
    state dict stays as above, bit for bit. After setting the buffers by hand, in the layout above, call
    :meth:`prepack`; until then the reference computes the layer.

    Nothing in the layer is trainable: packed weights, scales and bias are buffers. Gradients with respect to the input
    are computed (so layers around this one can be trained), through a weight expanded for the backward pass.

    Setting ``int8_activations`` rounds the layer's input to 8 bits, group by group
    (:func:`~tarq.kernels.w4_linear.w4_linear_int8`): about twice as fast on a CPU, outputs off by about 0.7 % of
    their norm, and without gradients. It is not part of the state dict. :func:`use_int8_activations` sets it where
    there is a kernel for it.

    There is no ``weight`` attribute: a dense copy made by accident would undo the packing. Use
    :meth:`dequantize`.

    Args:
        in_features: K.
        out_features: N.
        scheme: bits, group size and symmetry.
        bias: whether the layer has one.
        scale_dtype: float16, bfloat16 or float32; the initial dtype of the bias too.
        device: where the buffers are; they are not initialised (``"meta"`` allocates nothing).

    Raises:
        ValueError: ``scale_dtype`` is none of the three dtypes.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: Tensor
    weight_zero_point: Tensor | None
    bias: Tensor | None
    backend: str | None = None
    slow_because: str = ""
    _memory_layout: tuple[int, str] | None = None  # bits and layout in memory, once prepacked
    _int8: bool = False

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
        if scale_dtype not in SCALES:
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
    def of(cls, quantized: Quantized, scheme: Scheme, bias: Tensor | None = None) -> Self:
        """:meth:`from_codes` of a solver's result, whose zero points count where the scheme has any."""
        zeros = None if scheme.symmetric else quantized.zeros
        return cls.from_codes(quantized.codes, quantized.scales, zeros, scheme, bias)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        scheme: Scheme,
        bias: Tensor | None = None,
    ) -> Self:
        """Pack unsigned codes into a layer on their device.

        Args:
            codes: uint8 [N, K], each below ``2**scheme.bits``.
            scales: float16, bfloat16 or float32 [N, ceil(K / group_size)]; kept in this dtype.
            zeros: uint8 [N, ceil(K / group_size)] for an asymmetric scheme, None for a symmetric one.
            scheme: what the codes mean.
            bias: float [N] or None; kept in its dtype.

        Raises:
            ValueError: a shape or dtype is wrong, a code does not fit, a scale is not finite, or ``zeros``
                contradicts the scheme.
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
        if not torch.isfinite(scales).all():
            raise ValueError("scales must be finite, or the layer's outputs would not be")
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
        weight = self.packed_weight()
        backend = packed_linear.get(self.backend or "reference")
        if self._int8:
            return backend.run_int8(x, weight)
        return packed_linear.multiply(backend, x, weight)

    def packed_weight(self) -> PackedWeight:
        """The layer's tensors in their memory layout."""
        # The dictionary, not attributes: nn.Module looks buffers up last, which costs half a microsecond each.
        tensors = self._buffers
        return PackedWeight(
            tensors["weight_packed"],  # type: ignore[arg-type]
            tensors["weight_scale"],  # type: ignore[arg-type]
            tensors["weight_zero_point"],
            tensors["bias"],
            self.in_features,
            self.scheme.group_size,
            *(self._memory_layout or (self.scheme.bits, "stored")),
        )

    @property
    def int8_activations(self) -> bool:
        """Whether every call rounds its input to 8 bits."""
        return self._int8

    @int8_activations.setter
    def int8_activations(self, value: bool) -> None:
        if value != self._int8:
            self.unprepack()
            self._int8 = value
            self.prepack()

    @property
    def prepacked(self) -> bool:
        """Whether the weights are in a backend's layout."""
        return self._memory_layout is not None

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight [N, K], computed in the scales' dtype, then cast to ``dtype`` if one is given."""
        stored = self._as_stored()
        weight = dequantize(
            stored.packed, stored.scale, stored.zeros, stored.in_features, stored.group_size, stored.bits
        )
        return weight if dtype is None else weight.to(dtype)

    def packed_bytes(self) -> int:
        """Bytes of the weight in a checkpoint: codes, scales, zero points and shape, without the bias."""
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
        """Choose the backend for a device (by default the weights' device) and convert the weights to its layout.

        Does nothing if they are converted already or on ``meta``.

        Raises:
            BackendError: ``TARQ_BACKEND`` is unknown, or what it names cannot run the layer.
            ValueError: a buffer's shape, dtype or device does not fit; names the buffer.
        """
        if self.prepacked or self.weight_packed.is_meta:
            return
        weight = self.packed_weight()
        config = Config.of(weight, device or weight.packed.device, self._int8)
        backend, self.slow_because = packed_linear.select(config)
        self._set_weight(backend.prepack(weight))
        self.backend = backend.name

    def unprepack(self) -> None:
        """Undo :meth:`prepack`: restore the checkpoint's layout."""
        if self.prepacked:
            self._set_weight(self._as_stored())
            self._memory_layout = self.backend = None

    def _set_weight(self, weight: PackedWeight) -> None:
        self.weight_packed, self.weight_scale, self.weight_zero_point = weight[:3]
        self.bias, self._memory_layout = weight.bias, (weight.bits, weight.layout)

    def _as_stored(self) -> PackedWeight:
        """The weight in the checkpoint's layout."""
        return as_stored(self.packed_weight()).widened(self.scheme.bits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        self.unprepack()
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype:  # a cast does not apply to scales: see the class docstring
            self.weight_scale = scale.to(self.weight_scale.device)
        self.prepack()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.prepacked:
            names = "weight_packed", "weight_scale", "weight_zero_point"
            for name, tensor in zip(names, self._as_stored(), strict=False):
                if tensor is not None:
                    destination[prefix + name] = tensor

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.unprepack()
        wrong = self._wrong_dtypes(state_dict, prefix)
        if wrong:
            args[-1].extend(wrong)  # the errors that load_state_dict raises
            return
        scale = state_dict.get(f"{prefix}weight_scale")
        if scale is not None and scale.dtype != self.weight_scale.dtype:
            self.weight_scale = torch.empty_like(self.weight_scale, dtype=scale.dtype)
        shape = state_dict.get(f"{prefix}weight_shape")
        expected = [self.out_features, self.in_features]
        if shape is not None and not shape.is_meta and shape.tolist() != expected:
            # Words are padded, so widths such as 127 and 128 pack alike: only weight_shape distinguishes them.
            errors = args[-1]
            errors.append(f"{prefix}weight_shape is {shape.tolist()}, but this layer is {expected}")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.prepack()

    def _wrong_dtypes(self, state_dict: dict[str, Any], prefix: str) -> list[str]:
        """Errors for tensors that loading would silently cast, or accept as they are."""
        words = (torch.int32,)
        wanted = {"weight_packed": words, "weight_zero_point": words, "weight_scale": SCALES}
        found = {prefix + name: (state_dict.get(prefix + name), dtypes) for name, dtypes in wanted.items()}
        return [
            f"{key} must be {' or '.join(str(d).removeprefix('torch.') for d in dtypes)}, not {tensor.dtype}"
            for key, (tensor, dtypes) in found.items()
            if tensor is not None and tensor.dtype not in dtypes
        ]


@singledispatch
def packed_layer(quantized: Quantized, scheme: Scheme, bias: Tensor | None) -> QuantLinear:
    """The layer that runs a solver's result; a result of another class registers its own here.

    Args:
        quantized: codes, scales and zero points.
        scheme: what the codes mean.
        bias: float [m] or None.

    Raises:
        ValueError: see :meth:`QuantLinear.from_codes`.
    """
    return QuantLinear.of(quantized, scheme, bias)


class Int8Layers(int):
    """How many layers round their input to 8 bits: an integer with attributes.

    Attributes:
        exact: names of the packed layers that do not.
        reasons: the distinct reasons why not.
    """

    exact: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def note(self) -> str:
        """A note for the user: which layers keep exact inputs and why; empty if all round."""
        if not self and not self.exact:
            return "a full-precision model, which has no packed layers: quantize it first"
        if not self.exact:
            return ""
        share = f"{len(self.exact)} of {self + len(self.exact)} packed layers keep exact inputs"
        return f"{share}, {self.exact[0]} for one: {'; '.join(self.reasons)}"


def use_int8_activations(model: nn.Module) -> Int8Layers:
    """Make each :class:`QuantLinear` that has a kernel for it round its input to 8 bits.

    This requires a backend with such a kernel: on a CPU at most 4 bits and groups of 32, 64, a multiple of 128, or all
    inputs; on a GPU none has. The other layers keep exact inputs.

    Returns:
        How many do, and a note about the others.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)}
    reasons = {name: _no_int8_kernel(layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.int8_activations = not reasons[name]
    exact = {name: reason for name, reason in reasons.items() if reason}
    found = Int8Layers(len(layers) - len(exact))
    found.exact, found.reasons = tuple(exact), tuple(dict.fromkeys(exact.values()))
    return found


def _no_int8_kernel(layer: QuantLinear) -> str:
    """Why only the reference backend can run the layer with int8 activations; empty if another can."""
    config = Config.of(layer._as_stored(), layer.weight_packed.device, int8_activations=True)
    others = [entry for entry in packed_linear.survey(config) if entry[0] != "reference"]
    if any(able for _, able, _ in others):
        return ""
    here = [f"{name} {why}" for name, _, why in others if packed_linear.get(name).device in (None, config.device)]
    return "; ".join(here) or f"no backend has a kernel for {config}"


def slow_layers(model: nn.Module) -> list[str]:
    """Notes about layers that are correct but slow, a sentence per reason.

    Examples: 8 bits on a GPU, which have no kernel; a GPU or a group size for which every call expands the weight.
    """
    reasons = Counter(m.slow_because for m in model.modules() if isinstance(m, QuantLinear) and m.slow_because)
    return [f"{count} packed layers are slow: {reason}" for reason, count in reasons.items()]
