"""`python -m sppo` is the command line."""

from sppo.cli import main

raise SystemExit(main())
