"""Prediction, features, reconstruction and attribution with trained models."""
