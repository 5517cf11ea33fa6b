"""Tests of a classifier."""
