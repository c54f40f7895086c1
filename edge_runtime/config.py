"""The whole configuration, validated: one YAML file (JSON is YAML). Every key has a description; unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge_runtime import crosschecks, document
from edge_runtime.adapter import Adapter
from edge_runtime.crosschecks.windows import JOURNAL_ROWS, PERIOD_S, WINDOW_ROWS, WINDOW_ROWS_MAX
from edge_runtime.document import DocumentError, Problem
from edge_runtime.records import LANES, Lane, Privacy

Name = Annotated[str, Field(pattern=document.NAME)]
"""Names stand in MQTT topics and file names: letters, digits, - and _."""

Seconds = Annotated[float, Field(gt=0, le=366 * 86_400)]
Lasting = Annotated[float, Field(ge=0, le=366 * 86_400)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Broker(Section):
    """The local MQTT broker."""

    mode: Literal["none", "external", "hosted", "auto"] = Field(
        "none",
        description="none: no local broker; external: connect to `url`; hosted: start one as a child process; "
        "auto: find the site's broker, or start it where there is none (needs `mesh`)",
    )
    url: str = Field(
        "mqtt://127.0.0.1:1883",
        description="external: mqtt://[user:password@]host[:port] or mqtts://... (password: also `secret:NAME`); hosted, "
        "auto: its port is where ours listens",
    )
    listen: str = Field(
        "127.0.0.1",
        description="hosted and auto: the address of this machine that it listens on. 0.0.0.0 (or ::): every one; "
        "then whoever is on the network may read and write",
    )
    people_listen: str = Field(
        "",
        description="hosted and auto, with a site: host:port where people of it come with name and password (over TLS; "
        "`edge-runtime site person --password`) in the place of a certificate, as 0.0.0.0:8884; default: nowhere",
    )
    program: Literal["auto", "mosquitto", "iotcore"] = Field(
        "auto", description="hosted, auto: the program; `auto` takes mosquitto where it is installed, else the embedded iotcore"
    )
    queued_messages_max: int = Field(100_000, ge=1, description="hosted mosquitto: QoS 1 messages kept for a client that is away")


class Mesh(Section):
    """Work shared with the other gateways of the site, over the site's broker."""

    discovery: Literal["mdns", "off"] = Field("mdns", description="mdns: announce and find each other; off: only `peers`")
    interfaces: list[str] = Field(default_factory=list, description="mdns: only on interfaces with these names (* matches any)")
    interfaces_exclude: list[str] = Field(
        default=["docker*", "br-*", "veth*", "virbr*", "cni*", "flannel*", "cali*", "vboxnet*", "vmnet*"],
        description="mdns: never on interfaces with these names (* matches any)",
    )
    peers: list[str] = Field(
        default_factory=list,
        description="Where brokers of the site's gateways may be: host or host:port",
        examples=[["10.0.0.2", "10.0.0.3:1884"]],
    )
    rank: int = Field(100, ge=1, le=1_000, description="broker.mode auto: the lowest rank hosts, of equal ones the first name")
    may_host: bool = Field(True, description="broker.mode auto: may this gateway host the broker?")
    accept_tasks: bool = Field(True, description="Compute windows for others?")
    offers: list[str] = Field(
        default_factory=list, description="Models to compute for others, beside those of its own pipelines: as in `model`"
    )
    tasks_waiting_max: int = Field(64, ge=1, le=10_000, description="Tasks of others that may wait here; others are refused")
    heartbeat_s_min: Seconds = Field(1.0, description="Least time between two heartbeats; it grows with the number of gateways")
    heartbeats_per_s_max: int = Field(5_000, ge=10, description="Heartbeats that the site's broker delivers, of all gateways")
    power: Literal["auto", "mains", "battery"] = Field("auto", description="auto: as the machine says; battery: a last choice")


ALONE = Mesh(discovery="off", accept_tasks=False)
"""Of a gateway that has a local broker and no `mesh`: it says that it is there, and shares no work."""


class Control(Section):
    """What others may set and ask of this gateway over the local broker: configuration and commands."""

    groups: list[Name] = Field(
        default_factory=list,
        description="Groups whose configuration counts here, the strongest last; every gateway is in the group `default`",
        examples=[["presses"]],
    )
    trial_s: Seconds = Field(60.0, description="A new configuration that is not healthy by then is taken back")
    require_signature: bool | list[Literal["engineer", "operator"]] = Field(
        True,
        description="With a site: configuration and commands must be signed by a person of the site who may give them. A list: "
        "only what is the word of these roles (`[engineer]`: configuration; a command counts as the broker's access rules let it "
        "pass, and nobody knows who gave it)",
    )
    from_network: bool = Field(
        False,
        description="Without a site: take configuration and commands also over a broker that others on the network reach; "
        "whoever is there may change this gateway",
    )


class Device(Section):
    """A PLC, a sensor, a camera."""

    adapter: str = Field(description="Name of the adapter: see `edge-runtime adapters`")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the adapter: see `edge-runtime adapters NAME`")
    points: list[dict[str, Any]] = Field(min_length=1, description="The declared values: see `edge-runtime adapters NAME`")
    period_s: Seconds = Field(PERIOD_S, ge=1e-6, description="Polled adapters: how often to read (a grid, no drift)")
    timeout_s: Seconds = Field(1.0, description="A read or connect that takes longer is given up")
    backoff_s_max: Seconds = Field(30.0, description="Longest wait between two attempts to reach a device that is gone")


class Window(Section):
    """Which samples a model eats. Give `count` (and `step`) or `length_s` (and `step_s`)."""

    count: int | None = Field(None, ge=1, le=1_000_000, description="Samples in a window", examples=[64])
    step: int | None = Field(
        None, ge=1, description="Samples from one window's start to the next (default: count, tumbling)", examples=[16]
    )
    length_s: Seconds | None = Field(None, description="Length of a window in seconds")
    step_s: Seconds | None = Field(None, description="Seconds from one window's start to the next (default: length_s, tumbling)")
    rows_max: int = Field(
        WINDOW_ROWS, ge=1, le=WINDOW_ROWS_MAX, description="Windows by time: with more samples than this a window is discarded"
    )
    gap_s_max: Seconds | None = Field(
        None, description="Two samples further apart than this are a gap: the open window is discarded"
    )
    bad: Literal["discard", "skip", "hold"] = Field(
        "discard",
        description="A sample with a bad value: discard the window it is in; skip the sample; "
        "hold: the last good value stands in (counted in `filled`)",
    )
    filled_max: int = Field(0, ge=0, description="hold: a window with more values filled in than this is discarded")


class Write(Section):
    """A point that is written when an alarm is raised or cleared."""

    point: str = Field(
        description="DEVICE/POINT; the point's own declaration must allow it (`write`)",
        examples=["press/stop"],
        pattern=r"^[^/]+/.+$",
    )
    value: bool | int | float | str = Field(description="What is written", examples=[True])
    on: Literal["raised", "cleared"] = Field("raised", description="When")


class Rule(Section):
    """Raises and clears an event."""

    name: Name = Field(description="Name of the rule, unique in the pipeline", examples=["too-hot"])
    output: str = Field(
        description="Output of the model (or POINT.min, POINT.mean, POINT.max, POINT.last without a model)",
        examples=["temperature.max"],
    )
    above: float | Literal["model"] | None = Field(
        None, description="Raise above this; `model`: the artefact's own threshold", examples=[80.0]
    )
    below: float | None = Field(None, description="Raise below this")
    hysteresis: float = Field(0.0, ge=0, description="Clear only when this far back inside the limit")
    raise_after_s: Lasting = Field(0.0, description="Raise only when it has lasted this long")
    clear_after_s: Lasting = Field(0.0, description="Clear only when it has been over for this long")
    severity: Literal["info", "warning", "critical"] = Field("warning", description="For people and dashboards")
    writes: list[Write] | None = Field(None, description="Points to write then: once, within their limits, and in the audit log")


class Pipeline(Section):
    """Points -> window -> model -> rules. Without `window`, every sample is forwarded as it is."""

    device: Name = Field(description="The device whose samples it takes", examples=["press"])
    points: list[str] | None = Field(
        None,
        min_length=1,
        description="Points in the model's order (default: those that the model names; without a model: all, as declared)",
    )
    window: Window | None = Field(
        None, description="Which samples make a window; without it every sample is forwarded", examples=[{"count": 64}]
    )
    model: str | None = Field(
        None, description="Model: a name under `models_dir` or a folder; none: min, mean, max, last of each point"
    )
    engine: Literal["auto", "tflite", "openvino"] = Field(
        "auto", description="auto: the fastest that passes its known answers here"
    )
    accelerator: str = Field(
        "cpu", pattern=r"^(cpu|gpu|npu|edgetpu)(\.\w+)?$", description="cpu, gpu, npu, edgetpu: the first choice; cpu is the last"
    )
    rules: list[Rule] = Field(default_factory=list, description="Events to raise and clear")
    privacy: Privacy = Field(
        Privacy.CLOUD,
        description="How far its samples, windows and results may go: gateway (they stay on it), site (its peers and sinks), "
        "cloud (anywhere)",
    )
    deadline_s: Seconds = Field(2.0, description="With `mesh`: a window that a peer has not computed by then is computed here")
    priority: int = Field(5, ge=0, le=9, description="With `mesh`: windows of higher priority go first at a peer")
    queue_max: int = Field(
        1_000, ge=1, le=10_000_000, description="Samples that may wait; then a polled source's oldest are dropped and counted"
    )


class MqttSink(Section):
    """Results to an MQTT broker."""

    type: Literal["mqtt"] = Field(description="To an MQTT broker")
    url: str = Field(
        description="mqtt://[user:password@]host[:port] or mqtts://..., or `local` for the local broker",
        examples=["mqtt://broker.example:1883"],
    )
    receiver: Name | None = Field(
        None,
        description="Name of the receiver that sends receipts (`edge-runtime receive --name`): batches, each record exactly "
        "once. Without it: one message a record, to the broker only, at least once",
        examples=["plant"],
    )
    lanes: list[Literal["gap", "event", "result", "sample"]] = Field(
        default=["gap", "event", "result", "sample"], min_length=1, description="Which records go there"
    )
    batch_records_max: int = Field(500, ge=1, le=10_000, description="Most records in a batch")
    timeout_s: Seconds = Field(5.0, description="Without a receipt (or PUBACK) for this long the far end counts as away")
    reach: Literal["site", "cloud"] | None = Field(
        None,
        description="How far records go from there: site (they stay in the plant), cloud (anywhere); default: site for `local`, "
        "else cloud. See `privacy` of a pipeline",
    )
    ca_file: str = Field("", description="CA certificate for mqtts")
    cert_file: str = Field("", description="Client certificate for mqtts")
    key_file: str = Field("", description="Client key for mqtts")


class HttpsSink(Section):
    """Results to `edge-runtime receive` or anything that speaks its two requests, over HTTP(S)."""

    type: Literal["https"] = Field(description="To an HTTP(S) server")
    url: str = Field(
        description="https://host[:port][/prefix] (http:// for tests and trusted networks)",
        pattern=r"^https?://.+$",
        examples=["https://cloud.example:8443"],
    )
    token_file: str = Field("", description="File with a bearer token")
    lanes: list[Literal["gap", "event", "result", "sample"]] = Field(
        default=["gap", "event", "result", "sample"], min_length=1, description="Which records go there"
    )
    batch_records_max: int = Field(500, ge=1, le=10_000, description="Most records in a batch")
    timeout_s: Seconds = Field(5.0, description="A request that takes longer is given up and sent again")
    reach: Literal["site", "cloud"] | None = Field(
        None,
        description="How far records go from there: site (the server is in the plant, and keeps them there), cloud (anywhere; "
        "the default). See `privacy` of a pipeline",
    )
    ca_file: str = Field("", description="CA certificate to trust (default: the system's)")


AnySink = Annotated[MqttSink | HttpsSink, Field(discriminator="type")]


def reach(sink: AnySink) -> Privacy:
    """SITE or CLOUD. The site's own broker is in the site; of any other far end somebody has to say so."""
    if sink.reach is not None:
        return Privacy(sink.reach)
    return Privacy.SITE if sink.type == "mqtt" and sink.url == "local" else Privacy.CLOUD


def lanes(sink: AnySink) -> list[Lane]:
    """What it takes of what it may have. Nothing of the class `gateway`, wherever it is."""
    may_have = (Privacy.CLOUD, Privacy.SITE) if reach(sink) is Privacy.SITE else (Privacy.CLOUD,)
    return [lane for lane in LANES if lane.kind in sink.lanes and lane.privacy in may_have]


class Outbox(Section):
    """What is on disk and not yet delivered."""

    file: str = Field("outbox.db", description="SQLite file, relative to `data_dir`")
    size_bytes_max: int = Field(256 * 2**20, ge=2**20, description="Most bytes on disk, WAL included; checked before the write")
    journal_rows_max: int = Field(
        JOURNAL_ROWS,
        ge=100,
        description="Samples of each source that asks again, waiting for their window; beyond it they wait at the source",
    )
    drain_s_max: Seconds = Field(5.0, description="How long a clean stop goes on delivering; what is left stays on disk")


class Metrics(Section):
    """Health and metrics of this gateway, for a monitoring system."""

    listen: str = Field(
        "127.0.0.1:9464",
        description="host:port for GET /metrics (Prometheus), /health and /live. 0.0.0.0:9464: every address of this machine; "
        "then whoever is on the network may read them (names, counts and causes; no point's value)",
    )


class Log(Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level shown")
    format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON lines")


class Config(Section):
    """One gateway."""

    site: Name = Field(description="The site: gateways of one site find each other", examples=["plant-1"])
    gateway: Name = Field(description="Name of this gateway, unique in the site", examples=["gateway-1"])
    data_dir: str = Field("data", description="Folder for the outbox and the broker's files, relative to this file")
    models_dir: str = Field("models", description="Folder with the models, relative to this file; shipped ones are found anyway")
    site_dir: str = Field(
        "", description="Folder with its key and certificate, needed to start if it is said here; default: identity in `data_dir`"
    )
    secrets_dir: str = Field(
        "", description="Folder of the files behind `secret:NAME` (`edge-runtime secret`); default: secrets in `data_dir`"
    )
    broker: Broker = Field(default_factory=Broker, description="The local MQTT broker")
    control: Control = Field(default_factory=Control, description="Configuration and commands over the local broker")
    devices: dict[Name, Device] = Field(
        default_factory=dict, description="What is connected, by name; may be empty where `mesh.offers` names a model"
    )
    pipelines: dict[Name, Pipeline] = Field(default_factory=dict, description="What is done with it, by name")
    sinks: dict[Name, AnySink] = Field(default_factory=dict, description="Where records go, by name")
    outbox: Outbox = Field(default_factory=Outbox, description="What is on disk and not yet delivered")
    mesh: Mesh | None = Field(None, description="Work shared with other gateways of the site; without it this one works alone")
    metrics: Metrics | None = Field(None, description="Health and metrics over HTTP; without it nothing listens")
    log: Log = Field(default_factory=Log, description="The log on standard error")


def together(settings: Config) -> Mesh:
    """How it is with the other gateways; nothing of it needs a `mesh` section."""
    return settings.mesh or ALONE


def secrets_folder(settings: Config) -> Path:
    """Relative to the configuration file, as `data_dir` is."""
    return Path(settings.secrets_dir) if settings.secrets_dir else Path(settings.data_dir) / "secrets"


class Loaded(BaseModel):
    """A valid configuration and the folder that its relative paths start from."""

    config: Config
    folder: Path


# --- loading ---------------------------------------------------------------------------------------------------------


class ConfigError(DocumentError):
    """Everything that is wrong with a configuration."""


def load_file(file: Path, schemas: Mapping[str, type[Adapter]]) -> Loaded:
    """Raises ConfigError as `load` does, and when the file cannot be read."""
    return Loaded(config=load(text_of(file), schemas, file), folder=file.resolve().parent)


def text_of(file: Path) -> str:
    """Raises ConfigError when the file cannot be read."""
    try:
        content = file.read_bytes() if file.stat().st_size <= document.SIZE_BYTES_MAX else b" " * (document.SIZE_BYTES_MAX + 1)
    except OSError as error:
        example = "`edge-runtime config example` prints one to start from"
        hint = example if isinstance(error, FileNotFoundError) else "give a file that this user may read"
        raise ConfigError([Problem(str(file), 1, "", f"cannot be read: {error.strerror}", hint=hint)]) from None
    return decoded(content, str(file))


def decoded(content: bytes, name: str) -> str:
    """Raises ConfigError when it is no text."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(name, line, "", "is no text in UTF-8", hint="is it the right file?")]) from None


def load(text: str, schemas: Mapping[str, type[Adapter]], file: Path | None = None) -> Config:
    """`schemas`: the adapters by name (EdgeError: a broken one). Raises ConfigError with every problem at once, by lines."""
    name = str(file) if file else "<text>"
    try:
        doc, found = document.survey(text, name)
    except DocumentError as error:
        raise ConfigError(error.problems) from None
    if not isinstance(doc.value, dict):
        what = "is empty" if doc.value is None else "is no mapping (key: value)"
        raise ConfigError([Problem(name, 1, "", what, hint="`edge-runtime config example` prints one to start from")])
    return checked(doc, schemas, found)


def checked(doc: document.Document, schemas: Mapping[str, type[Adapter]], found: Sequence[Problem] = ()) -> Config:
    """Of a document whose value is a mapping, and what was `found` in its text. Raises ConfigError as `load` does."""
    more = [*document.validate(doc, Config), *crosschecks.problems(doc, schemas)]
    problems = [*found, *(one for one in more if one.path not in [each.path for each in found])]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    return Config.model_validate(doc.value)
