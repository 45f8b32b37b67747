"""Transports: one interface (``base.pxd``), several networks."""
