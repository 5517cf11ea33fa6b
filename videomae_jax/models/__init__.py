"""Flax Linen modules and pure functions around them: no files, no devices."""
