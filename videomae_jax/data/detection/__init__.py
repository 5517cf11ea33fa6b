"""Boxes of persons and their actions at key frames of videos."""
