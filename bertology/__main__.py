"""`python -m bertology` is the command `bertology`."""

from .cli.command import main

if __name__ == "__main__":
    raise SystemExit(main())
