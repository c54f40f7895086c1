"""People of a site with an authority configure and command a real gateway: over TLS, signed, each what their role allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from commanded import waiting
from trusted import Site

pytestmark = pytest.mark.slow

LIMIT = "pipelines.wear.rules.too-hot.above"
WRITE = ("command", "press-1", "write", "point=press/speed")


def test_each_may_what_their_role_says(tmp_path: Path) -> None:
    site = Site(tmp_path, "plant")
    press, alice, olga, vera = (
        site.member(*each) for each in (("press-1",), ("alice", "engineer"), ("olga", "operator"), ("vera", "viewer"))
    )
    stranger = Site(tmp_path / "other", "plant").member("mallory", "engineer")
    site.roster(press)  # the others learn it from the broker
    with waiting(tmp_path, site_dir=str(press.folder)) as plant:
        plant.begin()
        said = plant.cli("config", "get", "press-1", LIMIT)
        assert said.status == 1
        assert "--identity DIR" in said.error
        plant.identity = stranger.folder
        assert plant.cli("config", "get", "press-1", LIMIT).status == 1

        plant.identity = vera.folder
        assert plant.cli("config", "get", "press-1", LIMIT, "--json").json["config"] == 1e9
        assert "vera is viewer, who never commands" in plant.cli(*WRITE, "value=1").error
        plant.identity = olga.folder
        assert "olga is operator, who never configures" in plant.cli("config", "set", "press-1", f"{LIMIT}=5").error
        assert plant.cli(*WRITE, "value=1200", "--json").json["outcome"] == "verified"

        plant.identity = alice.folder
        said = plant.cli("config", "set", "group/default", f"{LIMIT}=77", "--note", "summer")
        assert said.status == 0, said.error
        newest, *_ = plant.cli("config", "history", "press-1", "--json").json
        assert (newest["state"], newest["by"], newest["note"]) == ("active", "person:alice", "summer")
        assert "press-1 online" in plant.cli("mesh", "--seconds", "2").out
        assert len(plant.writes()) == 1


def test_a_person_whom_the_site_does_not_know_yet_is_told_so(tmp_path: Path) -> None:
    """The order of docs/site.md: a gateway joins and runs, then a person is made. The broker would throw away what she says."""
    site = Site(tmp_path, "plant")
    press = site.member("press-1")
    alice = site.member("alice", "engineer")
    with waiting(tmp_path, site_dir=str(press.folder)) as plant:
        plant.begin()
        plant.gateway.wait("roster_said")
        plant.identity = alice.folder
        for words in (("config", "set", "press-1", f"{LIMIT}=5"), (*WRITE, "value=1200")):
            said = plant.cli(*words)
            assert said.status == 1
            assert "plant does not know alice yet" in said.error
            assert "edge-runtime site roster --publish" in said.error
        assert not plant.writes()
