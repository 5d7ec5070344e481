"""`python -m bridged` is the command `bridged`."""

from bridged.commands import main

main()
