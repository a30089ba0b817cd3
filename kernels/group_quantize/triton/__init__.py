"""``group_refine`` on a GPU: ``kernels`` (Triton) and ``launch``. The sweep's CUDA kernel is the extension's."""
