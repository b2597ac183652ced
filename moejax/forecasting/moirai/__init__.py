"""MOIRAI-MoE forecasts: series to tokens, the sampling loop, and the forecaster around both."""
