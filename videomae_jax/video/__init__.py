"""From a path to the frames of a video."""
