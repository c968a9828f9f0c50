"""Faster ways to take the steps of a phase.

Importing this registers them, in the order in which they are tried. Each loads its compiled loops,
and with them numba, when it is first used.
"""
