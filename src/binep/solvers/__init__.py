"""Faster ways to take the steps of a phase."""
