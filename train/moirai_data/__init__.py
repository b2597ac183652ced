"""What MOIRAI-MoE is trained on: rows of patches packed from many series, and a generator."""
