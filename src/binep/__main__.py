"""`python -m binep`."""

from binep.cli.main import main

raise SystemExit(main())
