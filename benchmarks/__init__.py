"""How long things take, side by side with what else is installed. ``python -m benchmarks --help``."""
