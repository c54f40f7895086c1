"""Moved to edge_runtime/address.py."""

from edge_runtime.address import BadAddress, address  # noqa: F401 - moved
