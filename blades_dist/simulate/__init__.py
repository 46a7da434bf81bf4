"""A simulated world of faces and cameras: scenes in linear light, cameras that photograph them, and generators
that imitate such photographs. The public entry is :mod:`blades_dist.simulate.dataset`."""
