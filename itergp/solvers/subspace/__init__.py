"""Newton's method within a search space that grows: over all rows, or over kernels at some of them."""
