"""Layers: merge patches, what belongs to the machine, where each value comes from, and which document counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_runtime.adapter import Options, model_validator
from edge_runtime.bus import canonical
from edge_runtime.bus.control import Desired, Fault
from edge_runtime.control import layers
from edge_runtime.control.layers import BadLayers, Effective, Layer, Refused, Same, Take, merge, newer
from edge_runtime.document import Path, dotted
from edge_runtime.testing.adapter import Faulty

SCHEMAS = {"fake": Faulty}
KEYS = st.sampled_from(["a", "b", "devices", "pipelines", "points", "rules"])
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(0, 3)
    | st.text("xy", max_size=2)
    | st.just([])
    | st.lists(st.integers(0, 2), max_size=2)
)
TREE = st.recursive(LEAF, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=10)
MAPPING = st.dictionaries(KEYS, TREE, max_size=4)
RULE = st.fixed_dictionaries({}, optional={"above": st.integers(0, 9), "output": st.sampled_from(["t", "u"])})
NAMES = st.lists(st.sampled_from(["r1", "r2", "r3"]), unique=True)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Like real ones: pipelines with rules that have names, and what else there is."""
    rules = [{"name": name, **draw(RULE)} for name in draw(NAMES)]
    return {**draw(MAPPING), "pipelines": {"wear": {"rules": rules, "priority": draw(st.integers(0, 9))}}}


@st.composite
def patches(draw: st.DrawFn) -> dict[str, Any]:
    rules: Any = draw(st.none() | st.dictionaries(st.sampled_from(["r1", "r2", "r3", "r4"]), st.none() | RULE))
    return {**draw(MAPPING), "pipelines": {"wear": {"rules": rules} if rules is not None else {"priority": 1}}}


def patch(content: Mapping[str, Any], name: str = "gateway", revision: int = 1) -> Layer:
    return Layer(name, revision, patch=content)


def faults(base: Mapping[str, Any], *stack: Layer) -> tuple[Fault, ...]:
    with pytest.raises(BadLayers) as error:
        merge(base, stack)
    return error.value.faults


# --- RFC 7396 ---


def rfc_7396(target: Any, change: Any) -> Any:
    """Its section 2, word for word, on copies."""
    if isinstance(change, dict):
        result = copy.deepcopy(target) if isinstance(target, dict) else {}
        for name in change:
            if change[name] is None:
                if name in result:
                    del result[name]
            else:
                result[name] = rfc_7396(result.get(name), change[name])
        return result
    return copy.deepcopy(change)


@pytest.mark.parametrize(
    ("target", "change", "result"),
    [  # RFC 7396, appendix A, where both are mappings
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_patch_is_a_merge_patch(target: dict[str, Any], change: dict[str, Any], result: dict[str, Any]) -> None:
    assert merge(target, [patch(change)]).config == result


@given(MAPPING, MAPPING)
def test_merging_is_rfc_7396(base: dict[str, Any], change: dict[str, Any]) -> None:
    assume(not any(isinstance(_at(change, path), dict) for path in _named_paths(change)))
    assert merge(base, [patch(change)]).config == rfc_7396(base, change)


@given(configurations(), MAPPING)
def test_merging_is_rfc_7396_also_over_named_items(base: dict[str, Any], change: dict[str, Any]) -> None:
    assume(not any(isinstance(_at(change, path), dict) for path in _named_paths(change)))
    assert merge(base, [patch(change)]).config == rfc_7396(base, change)


# --- patches by name ---

WEAR = {
    "pipelines": {"wear": {"rules": [{"name": "hot", "above": 80, "output": "t"}, {"name": "cold", "below": 5, "output": "t"}]}}
}


def rules(change: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = merge(WEAR, [patch({"pipelines": {"wear": {"rules": change}}})]).config["pipelines"]["wear"][
        "rules"
    ]
    return found


def test_one_threshold_is_changed_by_the_name_of_its_rule() -> None:
    assert rules({"hot": {"above": 85}}) == [
        {"name": "hot", "above": 85, "output": "t"},
        {"name": "cold", "below": 5, "output": "t"},
    ]


def test_a_new_name_comes_behind_the_others_and_null_removes_an_item_or_a_key() -> None:
    found = rules({"hot": None, "cold": {"below": None, "above": 1}, "new": {"output": "u", "below": None}, "gone": None})
    assert found == [{"name": "cold", "output": "t", "above": 1}, {"name": "new", "output": "u"}]


def test_a_list_replaces_all_of_them() -> None:
    assert rules([{"name": "one"}]) == [{"name": "one"}]


def test_a_new_device_may_have_its_points_by_name() -> None:
    found = merge({}, [patch({"devices": {"press": {"adapter": "fake", "points": {"t": {"unit": "Cel"}}}}})])
    assert found.config == {"devices": {"press": {"adapter": "fake", "points": [{"name": "t", "unit": "Cel"}]}}}
    assert found.provenance == {
        ("devices", "press", "adapter"): "gateway",
        ("devices", "press", "points", "t", "unit"): "gateway",
    }


def test_only_points_and_rules_are_patched_by_name() -> None:
    base = {"devices": {"d": {"options": {"points": [{"name": "a"}]}}}}
    change = {"devices": {"d": {"options": {"points": {"a": 1}}}}}
    assert merge(base, [patch(change)]).config == change


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"hot": 85}, "pipelines.wear.rules.hot", "should be a mapping"),
        ({"hot": {"name": "heat"}}, "pipelines.wear.rules.hot.name", "is another name"),
    ],
)
def test_what_is_no_patch_by_name_is_said_with_its_place(change: Any, path: str, message: str) -> None:
    (fault,) = faults(WEAR, patch({"pipelines": {"wear": {"rules": change}}}, "group/presses"))
    assert (fault.path, fault.layer) == (path, "group/presses")
    assert message in fault.message


@pytest.mark.parametrize("items", [[{"name": "a"}, {"name": "a"}], [{"x": 1}], ["a"], "a", 7])
def test_items_without_names_of_their_own_cannot_be_patched_by_name(items: Any) -> None:
    (fault,) = faults({"pipelines": {"wear": {"rules": items}}}, patch({"pipelines": {"wear": {"rules": {"a": {}}}}}))
    assert (fault.path, fault.layer) == ("pipelines.wear.rules", "gateway")
    assert "whole list" in fault.hint


def test_the_name_may_stand_in_the_item_too() -> None:
    assert rules({"hot": {"name": "hot", "above": 1}})[0] == {"name": "hot", "above": 1, "output": "t"}


@given(configurations(), patches())
def test_a_patch_by_name_is_a_merge_patch_of_the_items_by_name(base: dict[str, Any], change: dict[str, Any]) -> None:
    """Independently: items as a mapping, RFC 7396, and back."""
    assume(not any(isinstance(_at(change, path), dict) for path in _named_paths(change) if path[1] != "wear"))
    by_name = copy.deepcopy(base)
    by_name["pipelines"]["wear"]["rules"] = {item["name"]: item for item in base["pipelines"]["wear"]["rules"]}
    expected = rfc_7396(by_name, change)
    wear = expected["pipelines"]["wear"]
    wear["rules"] = [{**item, "name": name} for name, item in wear["rules"].items()]
    assert merge(base, [patch(change)]).config == expected


# --- provenance ---


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Independently: scalars, what is empty, and lists, but for items with names."""
    named = len(path) == 3 and (path[0], path[2]) in (("devices", "points"), ("pipelines", "rules")) and isinstance(value, list)
    names = [item.get("name") if isinstance(item, dict) else None for item in value] if named else []
    if names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        value = {item["name"]: {key: item[key] for key in item if key != "name"} for item in value}
    if not isinstance(value, dict) or not value:
        yield path
    else:
        for key in value:
            yield from leaves(value[key], (*path, key))


@given(configurations(), patches(), MAPPING, st.booleans())
def test_every_leaf_has_a_layer_and_nothing_else_has(
    base: dict[str, Any], one: dict[str, Any], two: dict[str, Any], whole: bool
) -> None:
    stack = [patch(one, "group/default"), Layer("gateway", 1, config=two) if whole else patch(two)]
    try:
        found = merge(base, stack)
    except BadLayers:
        assume(False)
        return
    assert sorted(found.provenance, key=str) == sorted(leaves(found.config), key=str)
    assert set(found.provenance.values()) <= {"file", "group/default", "gateway"}
    summary = found.summary()
    for path, layer in found.provenance.items():
        around = [dotted(path[:length]) for length in range(len(path), -1, -1)]
        assert summary[next(each for each in around if each in summary)] == layer


@given(MAPPING, MAPPING)
def test_a_value_comes_from_the_last_layer_that_says_it(base: dict[str, Any], change: dict[str, Any]) -> None:
    assume(not any(isinstance(_at(change, path), dict) for path in _named_paths(change)))
    found = merge(base, [patch(change)])
    for path, layer in found.provenance.items():
        said = _at(change, path) is not None or any(isinstance(_at(change, path[:n]), list) for n in range(len(path)))
        assert (layer == "gateway") == said, (path, layer)


def test_where_a_value_comes_from_can_be_asked_by_name_or_number() -> None:
    found = merge(WEAR, [patch({"pipelines": {"wear": {"rules": {"hot": {"above": 85}}}}})])
    assert found.layer(("pipelines", "wear", "rules", "hot", "above")) == "gateway"
    assert found.layer(("pipelines", "wear", "rules", 0, "above")) == "gateway"
    assert found.layer(("pipelines", "wear", "rules", 1, "below")) == "file"
    assert found.layer(("pipelines", "wear")) == ""  # of several
    assert found.layer(("pipelines", "wear", "rules", 1, "missing")) == "file"  # what is around it
    assert found.summary() == {
        "pipelines.wear.rules.hot.above": "gateway",
        "pipelines.wear.rules.hot.output": "file",
        "pipelines.wear.rules.cold": "file",
    }
    assert merge(WEAR, []).summary() == {"": "file"}


# --- layers and their order ---


@given(st.permutations(["gateway", "group/b", "group/default", "group/a", "group/other"]))
def test_layers_stand_in_their_order_whatever_came_first(order: list[str]) -> None:
    base = {"control": {"groups": ["b", "a"]}}
    held = {name: patch({"x": name}, name) for name in order}
    found = layers.stack(base, held)
    assert [layer.name for layer in found] == ["group/default", "group/b", "group/a", "gateway"]
    assert merge(base, found).config["x"] == "gateway"
    assert merge(base, found[:-1]).config["x"] == "group/a"


def test_groups_are_those_of_the_file_and_the_gateway_and_of_no_group() -> None:
    base = {"control": {"groups": ["a"]}}
    assert layers.groups(base, None) == ("a",)
    assert layers.groups(base, patch({"control": {"groups": ["b", "c", "b"]}})) == ("b", "c")
    assert layers.groups(base, patch({"control": None})) == ()
    assert layers.groups(base, Layer("gateway", 1, config={})) == ()
    assert layers.groups({"control": {"groups": "a"}}, None) == ()
    (fault,) = faults(base, patch({"control": {"groups": ["z"]}}, "group/a"))
    assert (fault.path, fault.layer) == ("control.groups", "group/a")
    assert merge(base, [Layer("group/a", 1, config={"x": 1})]).config == {"x": 1, "control": {"groups": ["a"]}}


MACHINE = {"site": "s", "gateway": "g", "data_dir": "/d", "outbox": {"file": "o.db", "drain_s_max": 1}, "log": {"level": "info"}}


def test_a_whole_configuration_replaces_all_below_but_what_belongs_to_the_machine() -> None:
    stack = [patch({"metrics": {}}, "group/default"), Layer("gateway", 1, config={"broker": {"mode": "none"}})]
    found = merge(MACHINE, stack)
    assert found.config == {
        "broker": {"mode": "none"}, "site": "s", "gateway": "g", "data_dir": "/d", "outbox": {"file": "o.db"},
    }  # fmt: skip
    assert (found.layer(("site",)), found.layer(("broker",))) == ("file", "gateway")


@pytest.mark.parametrize(
    "change",
    [
        {"site": "x"},
        {"gateway": "x"},
        {"data_dir": None},
        {"site_dir": "x"},
        {"outbox": {"file": "x"}},
        {"outbox": None},
        {"outbox": 1},
    ],
)
@pytest.mark.parametrize("kind", ["config", "patch"])
def test_what_belongs_to_the_machine_is_not_changed_from_elsewhere(change: dict[str, Any], kind: str) -> None:
    if kind == "patch" or None not in change.values():
        (fault,) = faults(MACHINE, Layer("group/default", 1, **{kind: change}))
        assert fault.path.split(".")[0] == next(iter(change))
        assert (fault.hint, fault.layer) == ("set it in the file on the gateway", "group/default")


@given(st.dictionaries(st.sampled_from(["site", "gateway", "data_dir", "site_dir", "outbox", "x"]), TREE), st.booleans())
def test_it_is_never_changed(change: dict[str, Any], whole: bool) -> None:
    try:
        found = merge(MACHINE, [Layer("gateway", 1, config=change) if whole else patch(change)]).config
    except BadLayers:
        return
    for path in layers.KEPT:
        assert _at(found, path) == _at(MACHINE, path)


def test_to_say_what_it_is_already_is_no_fault_and_all_faults_are_told_at_once() -> None:
    assert merge(MACHINE, [patch({"site": "s", "outbox": {"file": "o.db"}})]).config == MACHINE
    found = faults(
        MACHINE, patch({"site": "x"}, "group/default"), patch({"gateway": "y", "pipelines": {"p": {"rules": {"r": 1}}}})
    )
    assert [(fault.path, fault.layer) for fault in found] == [
        ("site", "group/default"), ("pipelines.p.rules.r", "gateway"), ("gateway", "gateway"),
    ]  # fmt: skip


@given(configurations(), patches())
def test_the_same_again_is_the_same(base: dict[str, Any], change: dict[str, Any]) -> None:
    assume(not any(isinstance(_at(change, path), dict) for path in _named_paths(change) if path[1] != "wear"))
    before = copy.deepcopy((base, change))
    once, twice = merge(base, [patch(change)]), merge(base, [patch(change, "group/default"), patch(change)])
    assert once.config == twice.config
    assert once.hash == twice.hash == canonical.digest(once.config)
    assert (base, change) == before
    assert merge(base, [patch({})]).hash == canonical.digest(base)


# --- validation ---

VALID: dict[str, Any] = {
    "site": "s",
    "gateway": "g",
    "devices": {"press": {"adapter": "fake", "points": [{"name": "t"}, {"name": "u"}]}},
    "pipelines": {
        "wear": {"device": "press", "window": {"count": 4}, "rules": [{"name": "hot", "output": "t.max", "above": 80}]}
    },
}


def told(effective: Effective) -> list[Fault]:
    with pytest.raises(BadLayers) as error:
        layers.validated(effective, SCHEMAS)
    return list(error.value.faults)


def test_what_is_right_is_a_configuration() -> None:
    found = layers.validated(merge(VALID, [patch({"pipelines": {"wear": {"rules": {"hot": {"above": 85}}}}})]), SCHEMAS)
    assert found.pipelines["wear"].rules[0].above == 85


def test_every_fault_is_told_by_its_path_and_layer() -> None:
    change = {
        "pipelines": {"wear": {"rules": {"hot": {"above": "85"}, "cold": {"output": "t.min"}}}},
        "devices": {"saw": {"period": 1}},
    }
    found = told(merge(VALID, [patch(change, "group/default"), patch({"pipelines": {"wear": {"priority": 12}}})]))
    by_path = {fault.path: fault for fault in found}
    assert by_path["pipelines.wear.rules.hot.above"].layer == "group/default"
    assert "85" in by_path["pipelines.wear.rules.hot.above"].message
    assert by_path["pipelines.wear.rules.cold"].message == "has no limit"
    assert by_path["pipelines.wear.priority"].layer == "gateway"
    assert by_path["devices.saw.period"].hint.startswith("did you mean `period_s`")
    assert (by_path["devices.saw.adapter"].message, by_path["devices.saw.adapter"].layer) == ("is missing", "group/default")


def test_no_line_of_a_text_that_nobody_has_seen() -> None:
    twice = {"pipelines": {"wear": {"rules": [{"name": "a", "output": "t.max", "above": 1}] * 2}}}
    (fault,) = told(merge(VALID, [patch(twice)]))
    assert fault.path == "pipelines.wear.rules[1].name"
    assert " line " not in str(fault)


def test_no_secret_is_told() -> None:
    found = told(
        merge(VALID, [patch({"devices": {"press": {"options": {"password": 12345678}}}, "broker": {"url": "x://u:hunter22@h"}})])
    )
    assert found
    assert "12345678" not in str(found)
    assert "hunter22" not in str(found)


class Talkative(Faulty):
    class Options(Options):
        password: str = ""

        @model_validator(mode="after")
        def _is_long(self) -> Talkative.Options:
            raise ValueError(f"the password {self.password} is too short")


def test_no_adapter_tells_a_secret_of_its_own() -> None:
    device = {"adapter": "fake", "points": [{"name": "t"}], "options": {"password": "hunter22"}}
    with pytest.raises(BadLayers) as error:
        layers.validated(merge(VALID, [patch({"devices": {"press": device}})]), {"fake": Talkative})
    assert [fault.message for fault in error.value.faults] == ["the password *** is too short"]


@given(MAPPING)
def test_whatever_a_patch_says_is_a_configuration_or_faults(change: dict[str, Any]) -> None:
    try:
        layers.validated(merge(VALID, [patch(change)]), SCHEMAS)
    except BadLayers as error:
        assert error.faults


# --- which document counts ---

A, B = {"a": 1}, {"b": 2}


def held(revision: int, content: Mapping[str, Any] = A) -> Layer:
    return patch(content, revision=revision)


def test_without_anything_held_a_document_is_taken() -> None:
    found = newer(None, Desired(patch=A), "gateway")
    assert isinstance(found, Take)
    assert (found.layer.revision, found.layer.hash, found.layer.name) == (1, canonical.digest(A), "gateway")


@pytest.mark.parametrize(
    ("revision", "content", "outcome"),
    [
        (8, B, Take), (8, A, Take), (7, A, Same), (7, B, Refused), (6, B, Refused), (6, A, Refused),
        (None, A, Same), (None, B, Take),
    ],
)  # fmt: skip
def test_the_higher_revision_counts(revision: int | None, content: dict[str, Any], outcome: type) -> None:
    found = newer(held(7), Desired(revision=revision, patch=content), "gateway")
    assert isinstance(found, outcome)
    if isinstance(found, Take):
        assert found.layer.revision == 8  # one without a revision is the next one: what is older cannot come back
    if isinstance(found, Refused):
        assert (found.older, "revision 8" in found.hint) == (revision == 6, True)


@pytest.mark.parametrize(
    ("before", "revision", "taken"),
    [
        (7, 7 + 10**6, True),
        (7, 8 + 10**6, False),
        (7, 2**53, False),
        (None, 2**53, False),
        (None, 2**52, True),
        (2**52, 2**52 + 1, True),
    ],
)
def test_nobody_says_the_last_revision_of_all(before: int | None, revision: int, taken: bool) -> None:
    found = newer(held(before) if before else None, Desired(patch=B, revision=revision), "gateway")
    assert isinstance(found, Take) is taken
    if isinstance(found, Refused):
        assert (found.older, f"publish it as revision {(before or 0) + 1}" in found.hint) == (False, True)


def test_a_configuration_is_not_a_patch_that_says_the_same() -> None:
    assert isinstance(newer(held(7), Desired(config=A), "gateway"), Take)
    assert isinstance(newer(held(7), Desired(config=A, revision=7), "gateway"), Refused)


def test_what_is_signed_has_a_revision() -> None:
    found = newer(None, Desired(patch=A), "gateway", numbered=True)
    assert isinstance(found, Refused)
    assert "revision" in found.cause


@given(st.permutations(range(1, 6)))
def test_whatever_order_they_come_in_the_highest_revision_is_held(order: list[int]) -> None:
    layer: Layer | None = None
    for revision in order:
        found = newer(layer, Desired(patch={"r": revision}, revision=revision), "gateway")
        layer = found.layer if isinstance(found, Take) else layer
    assert layer is not None
    assert layer.content == {"r": 5}


def test_a_target_is_a_layer() -> None:
    assert (layers.layer_name("gw/press-1"), layers.layer_name("group/presses")) == ("gateway", "group/presses")


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _named_paths(change: dict[str, Any]) -> list[Path]:
    return [
        (root, name, inner)
        for root, inner in (("devices", "points"), ("pipelines", "rules"))
        if isinstance(change.get(root), dict)
        for name in change[root]
    ]
