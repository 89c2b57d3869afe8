"""Posterior covariances: actions that all inputs share, those of their neighbours, and dense matrices."""
