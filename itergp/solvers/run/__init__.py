"""How one solve runs: stages, the loop, budgets, rounds, and what is recorded. Solvers only step."""
