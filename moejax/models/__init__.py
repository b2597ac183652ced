"""Models: a config, a Linen module and named sizes each."""
