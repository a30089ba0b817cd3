"""A custom `w4_linear` backend in plain PyTorch: codes are stored as bytes, so that a call need not unpack them.

Run it: python examples/own_backend.py
"""

import torch
from tarq.kernels.scheme import Scheme
from tarq.kernels.w4_linear import Backend, Config, PackedWeight, pack, register, unpack
from torch import Tensor

from tarq import QuantLinear


class Bytes(Backend):
    name = "bytes"

    def can_run(self, config: Config) -> tuple[bool, str]:
        return config.symmetric and not config.int8_activations, "" if config.symmetric else "supports no zero points"

    def prepack(self, weight: PackedWeight) -> PackedWeight:
        weight.check()
        return weight._replace(packed=unpack(weight.packed, weight.bits, weight.in_features), layout=self.name)

    def unprepack(self, weight: PackedWeight) -> PackedWeight:
        return weight._replace(packed=pack(weight.packed, weight.bits), layout="stored")

    def run(self, x: Tensor, weight: PackedWeight) -> Tensor:
        levels = weight.packed.to(x.dtype) - 2 ** (weight.bits - 1)
        scales = weight.scale.to(x.dtype).repeat_interleave(weight.group_size, 1)[:, : weight.in_features]
        return torch.nn.functional.linear(x, levels * scales, weight.bias)


register(Bytes())
if __name__ == "__main__":
    codes, scales = torch.randint(0, 16, (64, 256), dtype=torch.uint8), torch.rand(64, 2)
    layer, x = QuantLinear.from_codes(codes, scales, None, Scheme()), torch.randn(3, 256)
    error = (layer(x) - x @ layer.dequantize().T).abs().max()
    print(f"{layer.backend}: {layer(x).shape[1]} outputs, off by {error:.1e}, saved as {layer.state_dict().keys()}")
