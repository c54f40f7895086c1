"""`edge-runtime config example`: a commented sample to start from."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Prints to standard output; 0. Raises EdgeError: there is no such adapter."""
    from edge_runtime.cli import yaml_sample
    from edge_runtime.document import closest
    from edge_runtime.ports import EdgeError
    from edge_runtime.sources.registry import Registry

    registry, name = Registry(), args.adapter
    if name not in registry:
        raise EdgeError(f"no adapter {name} is installed", closest(name, registry, "installed are"))
    print("\n".join(yaml_sample.configuration(name, registry[name])))
    return 0
