"""Measurements of trained models and generated images."""
