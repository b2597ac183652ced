"""Layers: pure functions marked as regions, and small Linen modules that hold their parameters."""
