"""Checkpoints: compressed-tensors out and in, folders written whole or not at all."""
