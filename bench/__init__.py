"""Benchmarks: ratios in one run, both sides on the same server with the same settings, which are printed."""
