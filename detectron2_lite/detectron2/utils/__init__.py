"""Helpers around detection: logging, events, processes, files, drawing."""
