"""The published method: Newton's method with a probabilistic linear solver inside."""
