"""Layers of the transformers: attention, linear layers, LayerNorm."""
