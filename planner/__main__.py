import sys

from planner.cli import main

sys.exit(main(sys.argv[1:]))
