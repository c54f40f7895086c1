"""Two gateways with one name: who keeps it (pure). Both see the same words and come to the same end without asking anybody.

The one that is longer in the mesh keeps the name; within TIE_S nobody is longer, and the smaller instance keeps it. Each measures
the other's time by a message that took its way, so near the limit both may think that they are longer: who has claimed the name
CLAIMS_MAX times and still hears the other goes by the instance alone. (That both stand down cannot be: the other's time can only
look too short.) Who stands down comes back when the other one is gone, or is not heard for as long as a peer that is late.
"""

from __future__ import annotations

TIE_S = 2.0
CLAIMS_MAX = 3
CLAIM_WAIT_S = 0.2
CLAIM_WAIT_S_MAX = 60.0
"""Before a claim is said again; doubled each time: a rival that does not listen must not make us shout."""


class Name:
    """Our own name."""

    def __init__(self, instance: str) -> None:
        self.taken = ""
        """Instance of the gateway that has our name; "": we have it."""
        self.rival = ""
        """The last other instance that was heard under our name."""
        self.conflicts = 0
        """Rivals so far, and the same one again after it was gone."""
        self._instance = instance
        self._claims = 0
        self._heard_ns = 0
        self._silent_s = 0.0

    def heard(self, rival: str, theirs_s: float, mine_s: float, silent_s: float, now_ns: int) -> bool:
        """Somebody alive has our name and is in the mesh for `theirs_s` seconds; it counts as gone after `silent_s` without a
        word. True: this is news (another rival, or we have just lost the name)."""
        news = rival != self.rival
        self.conflicts += news
        if news:
            self.rival, self._claims = rival, 0
        self._heard_ns, self._silent_s = now_ns, silent_s
        if self.taken:
            news, self.taken = news or self.taken != rival, rival
            return news
        if self._keeps(rival, mine_s - theirs_s):
            return news
        self.taken = rival
        return True

    def claim_wait_s(self) -> float:
        """Before we say again that the name is ours."""
        return float(min(CLAIM_WAIT_S_MAX, CLAIM_WAIT_S * 2 ** min(self._claims, 16)))

    def claimed(self) -> None:
        """We have said again that the name is ours."""
        self._claims += 1

    def gone(self, instance: str) -> bool:
        """A gateway of our name said goodbye, or its will did. True: the name is ours again."""
        if instance == self.rival:
            self.rival, self._claims = "", 0
        free = self.taken == instance != ""
        if free:
            self.taken = ""
        return free

    def check(self, now_ns: int) -> bool:
        """True: the one that has it is not heard any more, and the name is ours again."""
        return bool(self.taken) and now_ns - self._heard_ns > self._silent_s * 1e9 and self.gone(self.taken)

    def woke(self, now_ns: int) -> None:
        """We heard nothing for a while, for reasons of our own: a new connection, a sleep."""
        self._heard_ns = now_ns

    def _keeps(self, rival: str, longer_s: float) -> bool:
        if self._claims >= CLAIMS_MAX or abs(longer_s) < TIE_S:
            return self._instance < rival
        return longer_s > 0
