"""Header tier: `python -m paramctl`."""

from paramctl.cli import main

main()
