"""Learn by gradient (torch): only what trains imports this package; what it returns needs numpy alone."""
