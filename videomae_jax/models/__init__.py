"""Flax Linen modules: pure, without input or output."""
