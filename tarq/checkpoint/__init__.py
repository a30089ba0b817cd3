"""Checkpoints: writing and reading compressed-tensors; folders are written whole or not at all."""
