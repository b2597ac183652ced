"""Forecasting with a finished model: tables in, samples, quantiles and plots out."""
