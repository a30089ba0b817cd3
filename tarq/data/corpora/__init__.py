"""Corpora, one file each, and from the name of one to its utterances."""
