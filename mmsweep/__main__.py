"""`python -m mmsweep`."""

from mmsweep.cli import main

main()
