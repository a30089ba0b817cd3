"""``w4_linear`` on a GPU: ``layout`` and ``plan`` need no Triton, ``kernels`` and ``launch`` do."""
