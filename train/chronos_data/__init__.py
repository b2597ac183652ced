"""What Chronos is trained on: real series, mixtures of them, and draws of Gaussian processes."""
