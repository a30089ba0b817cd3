"""A custom residual: the cross-fitted one about the mean, which a layer's bias absorbs.

Run it: ``python examples/own_residual.py``
"""

from dataclasses import dataclass

import tarq
import tarq.testbed
from tarq.method.residuals import CrossFitted, absorbed_mean


@dataclass(frozen=True)
class MeanInBias(CrossFitted):
    first_moments: bool = True  # also accumulate the means of both paths

    def centres(self, layer):
        # A constant added to every key does not change the softmax, so keys need no bias.
        return layer.bias is not None or layer.name.endswith("k_proj")

    def bias(self, layer, w_hat, statistics):
        return absorbed_mean(layer, w_hat, statistics)


if __name__ == "__main__":
    speech, config = tarq.testbed.calibration_pool(), tarq.TarqConfig.preset("tarq", samples=4)
    for residual in (None, MeanInBias()):
        model = tarq.load_recognizer(tarq.testbed.model())
        report = tarq.quantize(model, speech, config, residual=residual)
        alpha = sum(layer.alpha for layer in report.layers) / len(report.layers)
        print(f"{type(residual).__name__ if residual else config.residual}: mean α {alpha:.3f}")
