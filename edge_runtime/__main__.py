"""`python -m edge_runtime`: the command line without its script."""

from __future__ import annotations

import sys

from edge_runtime.cli import main

sys.exit(main())
