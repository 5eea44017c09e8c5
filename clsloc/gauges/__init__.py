"""Measuring time and memory of models in fair pairs."""
