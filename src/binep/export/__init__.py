"""Trained networks out of the house: files that other programs read."""
