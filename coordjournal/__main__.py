"""`python -m coordjournal`: the command line."""

import sys

from coordjournal.cli import main

sys.exit(main())
