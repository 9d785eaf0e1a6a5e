"""Settings, read from environment variables ``SENTIMENT_<GROUP>__<NAME>``; the README's table follows this file."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.errors import StartupError
from app.security.limits import RateLimits

PREFIX: Final = "SENTIMENT_"
DELIMITER: Final = "__"

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Server(_Group):
    """The HTTP server."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 serves other machines, too."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    processes: Positive = 1
    """Processes that share the connections, each with a model, a waiting room and a cache of its own."""
    max_body_bytes: Positive = 4 * 1024 * 1024
    """A longer request body is refused with 413 before it is read whole."""
    keep_alive_s: Positive = 75
    """An idle connection is closed after this time; keep it above the load balancer's."""
    drain_s: Annotated[float, Field(ge=0)] = 0.5
    """How long a stopping server leaves open connections to end with an answer before it closes idle ones."""
    receive_timeout_s: Seconds = 20
    """How long a client may take to send a request's head, to send its body, and to read its answer."""
    max_connections: Positive = 2_048
    """The most open connections of a process; one more is refused with 503."""
    admin_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port for /metrics and what stands under /admin, which then leave the other one; 0 keeps them there."""
    shutdown_timeout_s: Positive = 35
    """How long a stopping server goes on answering what it accepted; no shorter than the timeouts of requests."""


class Security(_Group):
    """Who may ask, and how much."""

    keys_file: str = ""
    """File of API keys (TOML); without one, none is asked for."""
    allow_anonymous: bool = False
    """Answer requests without a key, too; without a keys file it takes this to listen on more than loopback."""
    open_metrics: bool = False
    """Answer /metrics without a key."""
    rate_limits: RateLimits = ""
    """Texts that a key without limits of its own, or an address without a key, may send, as in
    `6000/minute, 1000000/day`."""


class Limits(_Group):
    """What one request may ask."""

    max_characters: Positive = 5_000
    """A longer text is refused; one longer than the model's window is cut and answered with `truncated: true`."""
    max_bytes: Positive = 20_000
    """The same in bytes of UTF-8."""
    max_texts: Positive = 1_024
    """The most texts in one request to the batch endpoint."""
    timeout_s: Seconds = 10
    """A single text not answered within this time gets 504."""
    batch_timeout_s: Seconds = 30
    """The same for a request to the batch endpoint."""


class Stream(_Group):
    """Requests to the stream endpoint: of any length, in bounded memory."""

    max_streams: Positive = 32
    """Streams at a time; beyond, 503 with Retry-After."""
    max_line_bytes: Positive = 131_072
    """A longer line has an error in its place; leave room for escapes and for what is passed through."""
    window_lines: Positive = 1_024
    """Lines of one stream in work, beyond which it is not read; a larger window holds up batch requests for longer."""
    window_bytes: Positive = 4 * 1024 * 1024
    """The same in bytes."""
    idle_s: Seconds = 60
    """A stream without a line, an answer or a reader for this time is ended."""


class Jobs(_Group):
    """Batch jobs, which outlive connections and restarts; they need the extra [jobs]."""

    url: SecretStr = SecretStr("")
    """Database that keeps them, with their texts: `sqlite:////var/lib/sentiment/jobs.db`, or `postgresql://…` (extra
    [postgres]); empty keeps none."""
    max_bytes: Positive = 256 * 1024 * 1024
    """The most bytes of one job, unpacked."""
    max_lines: Positive = 1_000_000
    """The most lines of one job."""
    max_open: Positive = 64
    """Jobs that have not ended; beyond, 503."""
    max_of_caller: Positive = 32
    """Jobs kept for one key, or one address without a key, ended ones included; beyond, 409."""
    max_stored_bytes: Positive = 4 * 1024 * 1024 * 1024
    """The most bytes that all jobs take in the database, where they are packed; beyond, 503."""
    sources: str = ""
    """Addresses below which the service fetches the lines of a job, separated by spaces:
    `https://reviews.s3.amazonaws.com/new/`; empty: lines are sent."""
    retention_s: Seconds = 172_800
    """A job to which nothing has happened for this time is deleted with its answers."""


class Model(_Group):
    """Which model runs, and on what."""

    path: Path = Path("models/e5-zh-sentiment/2.1.0")
    """Directory of the bundle to serve."""
    provider: Literal["auto", "cuda", "tensorrt", "openvino", "cpu"] = "auto"
    """Execution provider; `auto` takes the first of CUDA, OpenVINO and CPU that comes up, any other stops the start if
    it does not."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic; `auto` takes bf16 on a processor that has it, and fp16 on TensorRT, and on CUDA if the bundle has a
    file for it."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Processor threads of the model in each process; 0 divides what affinity and container quota allow."""
    gpu_memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Limit of what ONNX Runtime allocates on a GPU, and of what TensorRT may use to compile; 0 sets none."""
    cuda_graphs: bool = False
    """Record a CUDA graph for each shape of a batch and replay it, which launches a run at once."""
    engine_cache: Path = Path("build/tensorrt")
    """Directory where TensorRT keeps what it compiled for the next start."""


class Batching(_Group):
    """How texts share a run of the model."""

    max_items: Positive = 64
    """The most texts in one run."""
    max_tokens: Positive = 1_024
    """The most padded tokens in one run; a text that comes meanwhile waits for the whole run."""
    shared_max_tokens: Positive = 256
    """The same for batch requests while single texts come, one a second or more, which would wait for the run's end."""
    max_waiting_items: Positive = 8_192
    """Texts that may wait in each lane (single and batch requests); beyond, 503 with Retry-After."""
    max_waiting_tokens: Positive = 400_000
    """The same in tokens."""
    max_wait_s: Seconds = 2.0
    """A single text that would wait longer, by what waits before it, is refused at once with 503 and Retry-After."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Runs that go on at the same time, sharing the threads; 0 takes what measured best for the provider."""
    bulk_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the model's time that batch requests are sure of while single texts wait."""
    wait_s: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How long a run that is not full waits for more texts; 0 starts it at once."""


class Rollout(_Group):
    """When a model on trial is dropped."""

    min_comparisons: Positive = 200
    """Texts that both models scored before the candidate is judged."""
    max_flip_rate: Share = 0.05
    """The most of its labels that may differ."""
    max_error_rate: Share = 0.01
    """The most of its texts that may fail."""
    max_slowdown: Annotated[float, Field(ge=1)] = 1.5
    """How many times as long it may take."""


class Cache(_Group):
    """Answers remembered in this process, and by processes together."""

    max_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Memory for answers that this process remembers; 0 remembers none."""
    ttl_s: Seconds = 3_600
    """How long it remembers an answer."""
    redis_url: SecretStr = SecretStr("")
    """A Redis in which processes share answers and rate limits; empty shares none."""
    redis_namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "sentiment"
    """What every key in Redis begins with."""
    redis_ttl_s: Seconds = 86_400
    """How long Redis remembers an answer, more or less by a tenth."""
    redis_timeout_s: Seconds = 0.05
    """The longest that a request waits for Redis; then, as whenever Redis fails, its answer is computed."""


class Log(_Group):
    """Log lines on standard output; they never hold a text."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`json` writes one object a line, `console` colours; `auto` is console in a terminal and json elsewhere."""
    requests: bool = True
    """Write a line for each request."""


class Tracing(_Group):
    """OpenTelemetry traces; where they go and which are kept, variables OTEL_* say."""

    enabled: bool = False
    """Send a trace of each request to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra [tracing]."""


class Settings(BaseSettings):
    """Every setting of the service, by group."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="forbid", frozen=True, protected_namespaces=()
    )

    server: Server = Server()
    security: Security = Security()
    limits: Limits = Limits()
    stream: Stream = Stream()
    jobs: Jobs = Jobs()
    model: Model = Model()
    batching: Batching = Batching()
    rollout: Rollout = Rollout()
    cache: Cache = Cache()
    log: Log = Log()
    tracing: Tracing = Tracing()

    def replace(self, group: str, values: Mapping[str, object]) -> Self:
        """Return these settings with other values in one group."""
        return self.model_copy(update={group: getattr(self, group).model_copy(update=values)})

    @model_validator(mode="after")
    def _one_process_has_an_admin_port(self) -> Self:
        if self.server.admin_port and self.server.processes > 1:
            raise ValueError(
                "SENTIMENT_SERVER__ADMIN_PORT is for one process: with several, /metrics is on the service's port, "
                "and SIGHUP changes the model"
            )
        return self

    @model_validator(mode="after")
    def _accepted_requests_outlive_the_stop(self) -> Self:
        if self.server.shutdown_timeout_s < max(self.limits.timeout_s, self.limits.batch_timeout_s):
            raise ValueError(
                "SENTIMENT_SERVER__SHUTDOWN_TIMEOUT_S must be no shorter than SENTIMENT_LIMITS__TIMEOUT_S and "
                "SENTIMENT_LIMITS__BATCH_TIMEOUT_S, or a stop would cut off what was accepted"
            )
        return self


def describe_settings() -> dict[str, tuple[str, str]]:
    """Return the default and the sentence of every environment variable, in order."""
    return {
        f"{PREFIX}{group}{DELIMITER}{name}".upper(): (str(field.default), " ".join((field.description or "").split()))
        for group, model in Settings.model_fields.items()
        if isinstance(model.annotation, type) and issubclass(model.annotation, BaseModel)
        for name, field in model.annotation.model_fields.items()
    }


def render_settings() -> str:
    """Return the settings as a Markdown table, which stands in the README."""
    rows = [
        f"| `{variable}` | {f'`{default}`' if default else ''} | {text} |"
        for variable, (default, text) in describe_settings().items()
    ]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def load_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        StartupError: a variable with the prefix is misspelt, or a value does not fit.
    """
    known = describe_settings()
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1)
            hint = f": did you mean {near[0]}?" if near else f"; the settings are {', '.join(known)}"
            raise StartupError(f"unknown setting {variable}{hint}")
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{PREFIX}{DELIMITER.join(map(str, problem['loc']))}".upper() + f": {problem['msg']}"
            if problem["loc"]
            else problem["msg"]
            for problem in error.errors()
        ]
        raise StartupError("\n".join(lines)) from None
