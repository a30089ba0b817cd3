"""``gram`` on a GPU: ``plan`` (tiles and splits), ``kernels`` (Triton), ``launch``. Only the last two need Triton."""
