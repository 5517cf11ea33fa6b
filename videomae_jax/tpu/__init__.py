"""Compiles the training step for TPU slices on a machine without TPUs."""
