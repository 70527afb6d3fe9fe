"""Measure trained models: bounds, scores, samples."""
