"""``python -m nextscale.cli``."""

from nextscale.cli import main

raise SystemExit(main())
