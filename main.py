"""The paper's command line: see `python main.py --help`."""

from binep.cli.paper import main

if __name__ == "__main__":
    raise SystemExit(main())
