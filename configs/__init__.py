"""Experiments, one short file each. `common.py` explains every field."""
