"""The experiments of arXiv 2310.20285: ``python -m benchmarks.paper``."""
