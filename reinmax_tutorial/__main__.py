"""`python -m reinmax_tutorial run|status|collect|measure|list`."""

import sys

from reinmax_tutorial.experiments.command_line import main

if __name__ == "__main__":
    sys.exit(main())
