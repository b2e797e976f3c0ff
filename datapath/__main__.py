"""`python -m datapath` is `ctmirror`."""

import sys

from datapath.cli import main

if __name__ == "__main__":
    sys.exit(main())
