"""`python -m inferplan` is `inferplan`."""

import sys

from .cli import main

sys.exit(main())
