import sys

from planner.commands.plan import main

sys.exit(main(sys.argv[1:]))
