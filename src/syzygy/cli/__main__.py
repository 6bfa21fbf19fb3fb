"""`python -m syzygy.cli`."""

from syzygy.cli.main import main

main()
