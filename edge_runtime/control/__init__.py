"""Steers a gateway from outside: layers of configuration, trial and revert, commands, safe mode, the audit log."""
