"""Benchmarks: one command, one table, ratios against peers in the same run."""
