"""Families of speech models: one adapter each, found by ``config.model_type``."""
