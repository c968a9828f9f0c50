"""`python -m binep`, and the command `binep`."""


def run() -> int:
    """Exit code of the command line; of Ctrl-C also while it is still being imported."""
    try:
        from binep.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(run())
