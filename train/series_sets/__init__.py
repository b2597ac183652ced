"""Sets of series that forecasters are trained on: which there are, and their parts in time."""
