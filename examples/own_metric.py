"""A custom metric: positions are weighted by the norm of their layer's input, so that silence counts little.

Run it: ``python examples/own_metric.py``
"""

from dataclasses import dataclass

import tarq
import tarq.testbed
from tarq.method.metrics import Metric


@dataclass(frozen=True)
class Loudness(Metric):
    activations: bool = True  # weights differ between layers: call reassign with each layer's input

    def assign(self, tail, exists, key):
        return tail, None  # rare positions form the tail side; every weight is 1

    def balance(self, folds):
        return 2.0, ""  # a rare position counts twice

    def reassign(self, rows):
        loudness = rows.inputs.float().norm(dim=1)
        return rows.tail, rows.weight * (loudness / loudness.mean()).clamp(max=2)


if __name__ == "__main__":
    speech, config = tarq.testbed.calibration_pool(), tarq.TarqConfig.preset("tarq", samples=4)
    for metric in (None, Loudness()):
        model = tarq.load_recognizer(tarq.testbed.model())
        report = tarq.quantize(model, speech, config, metric=metric)
        loss = sum(layer.loss for layer in report.layers) / len(report.layers)
        name = type(metric).__name__ if metric else config.metric
        print(f"{name}: mean layer loss {100 * loss:.4f} % of the output, in its own metric")
