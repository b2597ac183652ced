"""Mixture-of-experts building blocks."""
