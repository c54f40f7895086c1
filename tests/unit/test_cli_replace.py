"""What new hardware takes from the report of a gateway that is dead."""

from __future__ import annotations

from edge_runtime.cli.gateway import taken


def test_who_may_configure_the_new_hardware_is_not_taken_from_a_report() -> None:
    """Whoever has the key of the dead gateway could say so."""
    report = {
        "site": "other", "gateway": "evil", "data_dir": "/etc", "site_dir": "/tmp/mine", "secrets_dir": "/tmp/mine",
        "control": {"require_signature": False, "from_network": True, "groups": ["theirs"]},
        "log": {"level": "info"}, "sinks": {"cloud": {"type": "mqtt", "url": "mqtt://u:***@x"}},
    }  # fmt: skip
    assert taken(report, "plant-1", "press-1") == {
        "site": "plant-1", "gateway": "press-1", "data_dir": "data", "log": {"level": "info"},
        "sinks": {"cloud": {"type": "mqtt", "url": "mqtt://u:secret:sinks-cloud-url@x"}},
    }  # fmt: skip
