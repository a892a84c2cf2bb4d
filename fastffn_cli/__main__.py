"""`python -m fastffn_cli`: the same program as the `fastffn` command."""

from fastffn_cli.app import main

main()
