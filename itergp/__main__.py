"""``python -m itergp``."""

import sys

from itergp.cli import main

sys.exit(main())
