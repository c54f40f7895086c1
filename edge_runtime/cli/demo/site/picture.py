"""What the site's demo shows at one instant (pure), the same as plain lines, and its account."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from edge_runtime.receiver.account import Account as Delivered


class GatewayPicture(msgspec.Struct, frozen=True, kw_only=True):
    """`here`, `by_peers`: its own windows, by who computed them; `for_others`: windows of others that it computed."""

    name: str
    running: bool
    online: bool
    host: bool
    slow: bool
    results_per_s: float
    here: int
    by_peers: int
    for_others: int
    waiting: int

    @property
    def state(self) -> str:
        return "killed" if not self.running else "online" if self.online else "joining"

    @property
    def peers_share(self) -> float:
        return self.by_peers / max(1, self.here + self.by_peers)


class Picture(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"):
    """`seconds` None: until Ctrl-C. `last`: the latest words about where a window of the slow gateway was computed, and why."""

    elapsed_s: float
    seconds: float | None
    draining: bool
    gateways: list[GatewayPicture]
    broker: str
    last: list[str]

    @property
    def host(self) -> str:
        return next((each.name for each in self.gateways if each.host and each.running), "nobody")


def plain(now: Picture) -> str:
    """One line."""
    words = [
        f"{each.name} {each.state}"
        + (f" {each.results_per_s:4.1f}/s ({100 * each.peers_share:.0f} % by peers)" if each.running else "")
        for each in now.gateways
    ]
    return f"{now.elapsed_s:5.1f} s  broker on {now.host}  " + "  ".join(words)


def changes(before: Picture | None, now: Picture) -> Iterator[str]:
    """What a person wants to hear at once, a line each."""
    at = f"{now.elapsed_s:5.1f} s  "
    if now.host != (before.host if before else "nobody") and now.host != "nobody":
        yield f"{at}the broker is on {now.host}"
    for number, each in enumerate(now.gateways):
        old = before.gateways[number].state if before else ""
        if each.state != old:
            yield f"{at}{each.name}{' (slow)' if each.slow else ''}: {each.state}"
    if now.draining and not (before and before.draining):
        yield f"{at}draining: what was accepted is delivered"


class GatewayAccount(msgspec.Struct, frozen=True, kw_only=True):
    """As account.Account of one gateway."""

    name: str
    accepted: int
    delivered: int
    lost: int
    duplicates: int
    resends: int
    by_peers: int


class SiteAccount(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="account"):
    """`problems` is empty when the account is clean."""

    gateways: list[GatewayAccount]
    kills: int
    back: int
    problems: list[str] = []


def account(
    accepted: Mapping[str, int],
    delivered: Sequence[Delivered],
    last: Picture,
    *,
    kills: int,
    back: int,
    kill_due: bool,
    settled: bool,
) -> SiteAccount:
    """`accepted`: records in each gateway's outbox since it began; `last`: the last picture. `kills`: of the gateway that hosted
    the broker; `back`: how often one came back. `settled`: it ran for long enough to show something."""
    far_end = {each.gateway: each for each in delivered}
    rows, problems = [], []
    for each in last.gateways:
        found = far_end.get(each.name, Delivered(site="", gateway=each.name))
        lost = max(0, accepted[each.name] - found.unique - found.same_content)
        rows.append(
            GatewayAccount(
                name=each.name,
                accepted=accepted[each.name],
                delivered=found.unique,
                lost=lost,
                duplicates=found.kept_twice,
                resends=found.duplicates,
                by_peers=each.by_peers,
            )
        )
        problems += [
            text
            for wrong, text in (
                (settled and accepted[each.name] == 0, f"{each.name} accepted nothing"),
                (lost > 0, f"{lost} of {accepted[each.name]} accepted records of {each.name} are not at the receiver"),
                (found.declared_lost > 0, f"{found.declared_lost} records of {each.name} had to go, and were declared lost"),
                (found.kept_twice > 0, f"{found.kept_twice} records of {each.name} are at the receiver twice"),
                (
                    settled and each.slow and each.by_peers == 0,
                    f"no window of {each.name}, the slow one, was computed by a peer",
                ),
            )
            if wrong
        ]
    if kill_due and not kills:
        problems.append("it ended before a gateway was killed: nothing is proved")
    elif kill_due and back < kills:
        problems.append(f"{kills} gateways were killed and {back} came back: nothing is proved")
    return SiteAccount(gateways=rows, kills=kills, back=back, problems=problems)


def lines(account: SiteAccount) -> list[str]:
    """For people."""
    table = [
        f"{each.name:10} {each.accepted:9,} {each.delivered:11,} {each.lost:6,} {each.duplicates:12,} {each.by_peers:19,}"
        for each in account.gateways
    ]
    return [
        f"{'gateway':10} {'accepted':>9} {'delivered':>11} {'lost':>6} {'duplicates':>12} {'computed by peers':>19}",
        *table,
        f"killed {account.kills}, came back {account.back}",
        *(f"NOT CLEAN: {problem}" for problem in account.problems),
        *([] if account.problems else ["clean: every accepted record is at the receiver exactly once"]),
    ]
