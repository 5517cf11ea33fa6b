"""From video files to batches of uint8 clips, on the host, with NumPy alone."""
