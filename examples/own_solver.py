"""A custom solver: the sweep's codes, then each moved to minimise the layer's loss, column by column.

Run it: ``python examples/own_solver.py``
"""

from dataclasses import dataclass, replace

import tarq
import tarq.testbed
from tarq.method.solvers import Sweep, damped_loss


@dataclass(frozen=True)
class Descent(Sweep):
    def quantize(self, targets, statistics, scheme, scale_dtype, outputs=None):
        swept = super().quantize(targets, statistics, scheme, scale_dtype)
        return [self.descend(v, q, statistics, scheme) for v, q in zip(targets, swept, strict=True)]

    def descend(self, v, q, statistics, scheme):
        H, codes = statistics.moments.hessian, q.codes.float()
        error = v.masked_fill(statistics.factor.dead, 0) - q.dequantize(v.dtype)
        for j in range(len(H)):
            if statistics.factor.dead[j]:
                continue
            s = q.scales[:, j // scheme.group_size].float()
            step = (error @ H[j] / (s * H[j, j])).round()  # the best change of column j with all others fixed
            moved = (codes[:, j] + step).clamp(0, scheme.max_code)
            error[:, j] -= (moved - codes[:, j]) * s
            codes[:, j] = moved
        return replace(q, codes=codes.to(q.codes.dtype), loss=damped_loss(error, statistics.factor))


if __name__ == "__main__":
    speech, config = tarq.testbed.calibration_pool(), tarq.TarqConfig.preset("tarq", samples=4)
    for solver in (None, Descent()):
        report = tarq.quantize(tarq.load_recognizer(tarq.testbed.model()), speech, config, solver=solver)
        loss = sum(layer.loss for layer in report.layers) / len(report.layers)
        print(f"{type(solver).__name__ if solver else config.solver}: mean layer loss {100 * loss:.4f} % of the output")
