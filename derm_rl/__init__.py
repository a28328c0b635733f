"""derm_rl: aligned synthetic dermoscopy and image–text pairs, reproducibly."""

__version__ = "0.1.0"
