"""Figures and widgets. Nothing in the core imports this wing, so a bare install needs no plotting library."""
