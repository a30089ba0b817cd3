"""``gram``: the weighted cross-product ``Xᵀ D Y`` behind every calibration statistic."""

from .op import gram

__all__ = ["gram"]
