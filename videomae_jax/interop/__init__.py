"""Reads, writes and adapts weights of other implementations."""
