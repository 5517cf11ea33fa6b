"""Experiments: one short file each; `common.py` holds what they share."""
