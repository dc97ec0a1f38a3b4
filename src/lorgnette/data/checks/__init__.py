"""Checks of a data set before training: scan, duplicates, warnings."""
