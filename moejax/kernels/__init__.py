"""Accelerated versions of plain functions, with their signatures."""
