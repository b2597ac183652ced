"""Forecasting with probabilistic models: what goes in, what comes out, and the loops between."""
