"""Experiments: choices, not code."""
