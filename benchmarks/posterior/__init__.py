"""How good the posterior is: variances over exact ones against time, calibration, and what is predicted far from the data."""
