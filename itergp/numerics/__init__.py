"""Small dense algebra and searches that the rest is built of; it knows neither kernels nor likelihoods."""
