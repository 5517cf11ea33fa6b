"""Weights of other implementations: read, written and adapted."""
