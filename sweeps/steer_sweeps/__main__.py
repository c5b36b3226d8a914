"""``python -m steer_sweeps`` is the command ``steer``."""

import sys

from .cli import main

sys.exit(main())
