"""Benchmarks of the three operations: contestants take turns; ratios of medians; the machine's measured ceilings."""
