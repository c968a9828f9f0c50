"""The command line.

A waiting thread of GNU OpenMP spins on its core for milliseconds, during which neither other
programs nor the thread that it waits for can have that core. A thousand rounds are as quick on an
idle machine and several times quicker on a busy one. PyTorch reads this variable when it is
imported: so it is set here, before any command is.

Figures go into files alone: a backend for windows that the environment names is not looked for.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ["MPLBACKEND"] = "agg"
