"""``python -m tidings.cli``: the command line, also where its script is not on the path."""

from __future__ import annotations

from tidings.cli.main import main

if __name__ == "__main__":
    main()
