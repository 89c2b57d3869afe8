"""Benchmarks of size: rows, processes, memory."""
