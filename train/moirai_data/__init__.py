"""Many series as rows of patches: the sets they come from, a generator, the packing."""
