"""From video files to batches of uint8 clips, on the host; imports no JAX."""
