"""Published checkpoints <-> our parameter pytrees, one file a system."""
