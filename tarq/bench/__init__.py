"""Benchmarks of the three operations: every contestant in turn, ratios of medians, and the machine's own ceilings."""
