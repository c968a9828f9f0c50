"""`python -m binep`."""

from binep.cli import main

raise SystemExit(main())
