"""``gram``: the weighted cross-product ``Xᵀ D Y`` behind every calibration statistic."""

from .op import gram, gram_split

__all__ = ["gram", "gram_split"]
