"""The command line.

GNU OpenMP lets a thread that waits keep its core for milliseconds, in which other programs stand
still, and the thread that it waits for with them. A thousand rounds are as quick on an idle
machine and several times quicker on a busy one. PyTorch reads this when it is loaded: so it is
set here, before any command is imported.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
