"""Benchmarks: real data, rivals in the same run, figures as they are."""
