"""The bi-level loop: look-ahead, hypergradient routes, task weights, and the collectives under them."""
