"""Chronos forecasts: series as tokens, sampling, and pipelines around the models."""
