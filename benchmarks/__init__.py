"""How fast and how small bridged is: `make bench`. Each figure is a ratio against something real in the same run."""
