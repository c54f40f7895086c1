"""Rules on a pipeline's outputs: which alarm is raised and cleared when (pure).

    over      value > above, or value < below
    back      value <= above - hysteresis, and value >= below + hysteresis
    between   neither: an alarm that is raised stays, one that is not is not raised

An alarm is raised when "over" has lasted `raise_after_s` without interruption, and cleared when "back" has lasted
`clear_after_s`; time is that of the samples, so that it is the same when windows are computed again after a restart. Only times
of one boot can be compared: after a reboot a duration that was running starts again. An output that is missing or no number
decides nothing: it neither raises nor clears, nor does it interrupt.

`snapshot()` is to be committed in the same transaction as the result and the events that came of it; then a crash at any
instant gives each event exactly once: what was not committed is computed again from the snapshot before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from edge_runtime.config import Rule
from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp


class Transition(msgspec.Struct, frozen=True):
    """An alarm is raised or cleared. `limit` is the one that was crossed when it was raised."""

    rule: str
    raised: bool
    at: Stamp
    output: str
    value: float
    limit: float
    severity: str


class RuleState(msgspec.Struct, frozen=True):
    """What a rule remembers. `limit` (where raised): the one that was crossed. `boot`, `since_ns`: since when it has been
    "over" (where it is not raised) or "back" (where it is); no boot: it is not."""

    raised: bool = False
    limit: float = 0.0
    boot: str = ""
    since_ns: int = 0


class Rules:
    """The rules of one pipeline. `model_limit` is the threshold of the artefact in use, for `above: model`."""

    def __init__(self, rules: Sequence[Rule], model_limit: float | None = None) -> None:
        self.model_limit = model_limit
        self._rules = tuple(rules)
        self._states = {rule.name: RuleState() for rule in rules}
        for rule in rules:
            _check(rule, model_limit)

    def use_model_limit(self, limit: float | None) -> None:
        """From now on. Raises EngineError where a rule needs one and there is none, or where it could never clear."""
        if limit != self.model_limit:
            for rule in self._rules:
                _check(rule, limit)
            self.model_limit = limit

    def can_use(self, limit: float | None) -> bool:
        """Of a model's threshold: false where `use_model_limit` would raise."""
        try:
            for rule in self._rules:
                _check(rule, limit)
        except EdgeError:
            return False
        return True

    @property
    def alarms(self) -> tuple[str, ...]:
        """Names of the rules whose alarm is raised, in the order of the configuration."""
        return tuple(rule.name for rule in self._rules if self._states[rule.name].raised)

    def update(self, outputs: Mapping[str, float], stamp: Stamp) -> list[Transition]:
        """Takes the outputs of the next window (`stamp`: its last sample); returns what changes by it."""
        transitions = []
        for rule in self._rules:
            state, transition = decide(rule, self._states[rule.name], outputs, stamp, self.model_limit)
            self._states[rule.name] = state
            if transition is not None:
                transitions.append(transition)
        return transitions

    def snapshot(self) -> bytes:
        """Small; JSON."""
        return msgspec.json.encode(self._states)

    def restore(self, snapshot: bytes) -> tuple[str, ...]:
        """Goes on from a snapshot. A rule that is new starts afresh. Returns the alarms that were raised by rules that are
        gone: nothing will ever clear them. Raises EdgeError."""
        try:
            states = msgspec.json.decode(snapshot, type=dict[str, RuleState])
        except msgspec.DecodeError as error:
            raise EdgeError(f"the rules' state cannot be read: {error}", "it is not a snapshot of this version") from None
        self._states = {rule.name: states.get(rule.name, RuleState()) for rule in self._rules}
        return tuple(name for name, state in states.items() if state.raised and name not in self._states)


def decide(
    rule: Rule, state: RuleState, outputs: Mapping[str, float], stamp: Stamp, model_limit: float | None = None
) -> tuple[RuleState, Transition | None]:
    """One rule, one window -> what it remembers now, and what changes by it."""
    value = outputs.get(rule.output, math.nan)
    if math.isnan(value):
        return state, None
    above = model_limit if rule.above == "model" else rule.above
    limit = _crossed(rule, value, above)
    if (_is_back(rule, value, above) if state.raised else limit is not None) is False:
        return RuleState(state.raised, state.limit), None
    if state.boot != stamp.boot:
        state = RuleState(state.raised, state.limit, stamp.boot, stamp.mono_ns)
    after_s = rule.clear_after_s if state.raised else rule.raise_after_s
    if stamp.mono_ns - state.since_ns < round(after_s * 1e9):
        return state, None
    shown = state.limit if limit is None else limit
    transition = Transition(rule.name, not state.raised, stamp, rule.output, value, shown, rule.severity)
    return RuleState(not state.raised, shown), transition


def _crossed(rule: Rule, value: float, above: float | None) -> float | None:
    """The limit that the value is over; None: it is not."""
    if above is not None and value > above:
        return above
    if rule.below is not None and value < rule.below:
        return rule.below
    return None


def _is_back(rule: Rule, value: float, above: float | None) -> bool:
    under = above is None or value <= above - rule.hysteresis
    return under and (rule.below is None or value >= rule.below + rule.hysteresis)


def _check(rule: Rule, model_limit: float | None) -> None:
    above = model_limit if rule.above == "model" else rule.above
    if rule.above == "model" and above is None:
        raise EdgeError(
            f"rule {rule.name}: the model has no threshold", "give `above` a number, or add a threshold to the manifest"
        )
    if above is not None and rule.below is not None and above - rule.hysteresis < rule.below + rule.hysteresis:
        raise EdgeError(
            f"rule {rule.name} could never clear: nothing is {rule.hysteresis} inside both {rule.below} and {above}",
            "make the hysteresis smaller than half the distance of the limits",
        )
