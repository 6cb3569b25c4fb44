"""Every knob of the service, with unit and default; `configuration.py` says where they are read from."""

from __future__ import annotations

import os
import re
from math import ceil
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

MIB = 1 << 20
PREFIX = "KRONSERVE_"

_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")


class Settings(BaseSettings):
    """What an operator can set. Sizes are bytes, times are seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    config: Path | None = Field(None, description="TOML file of settings, by the names of these options with _ for -.")
    repository: Path = Field(Path("model_repository"), description="Folder of NAME/VERSION bundles.")
    version_policy: str = Field(
        "all", description="Versions to serve: all, latest:N, or 1,3; NAME=.. for one model; joined by ;."
    )
    trusted_keys: Path | None = Field(
        None, description="PEM file of Ed25519 public keys; if set, only bundles signed by one of them are served."
    )
    custom_ops: Path | None = Field(
        None, description="Library with kernels for the attention operators; without one they run as their functions."
    )
    watch: float = Field(
        0.0, ge=0, description="Seconds between looks for new, changed and removed versions; 0: never."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    grpc_port: int | None = Field(
        8001, ge=0, le=65535, description="Port for gRPC; 0 takes a free one, empty: no gRPC."
    )
    grpc_max_message_bytes: int = Field(
        100 * MIB, gt=0, description="Largest gRPC message; past it RESOURCE_EXHAUSTED."
    )
    keys: Path | None = Field(
        None, description="TOML file of API keys (kronserve key makes them); if set, every request needs one."
    )
    open: bool = Field(
        False, description="Serve without keys on an address that others can reach, not just on loopback."
    )
    tls_certificate: Path | None = Field(None, description="PEM file of a certificate chain: speak TLS, on both ports.")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key.")
    cors_origins: str = Field(
        "", description="Origins whose web pages may call, as https://app.example.org, parted by commas; *: all."
    )
    device: str = Field(
        "auto",
        pattern="^(auto|cpu|cuda|tensorrt)$",
        description="auto: CUDA when a GPU is usable, else CPU; tensorrt: a GPU by TensorRT, which compiles first.",
    )
    gpu_memory_bytes: int = Field(
        0, ge=0, description="Most GPU memory of one model's arena, bytes; 0: as much as there is."
    )
    cuda_graphs: bool = Field(
        False, description="Replay each batch size as a CUDA graph, where a model's nodes all run on the GPU."
    )
    executors: int = Field(0, ge=0, description="Threads that run batches; 0: one per CPU core, 2 per GPU.")
    max_batch: int = Field(0, ge=0, description="Rows per batch; 0: measured at load for each model.")
    cache_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kronserve",
        description="Folder for compiled models and measured plans.",
    )
    plan_seconds: float = Field(1.0, gt=0, description="Time to measure a model's plan at its first load, seconds.")
    max_queue: int = Field(
        4096, gt=0, description="Requests that may wait before a new one, else it is 429; of all models, twice as many."
    )
    queue_budget: float = Field(
        2.0, gt=0, description="Longest time in the queue, seconds; an estimate past 0.85 of it is answered with 429."
    )
    request_timeout: float = Field(
        30.0, gt=0, description="Longest wait in the queue, and for the files of one request, seconds; past it 504."
    )
    shutdown_delay: float = Field(
        0.0, ge=0, description="Seconds after SIGTERM that new requests are still accepted while not ready."
    )
    shutdown_grace: float = Field(30.0, ge=0, description="Seconds that accepted requests get after SIGTERM.")
    head_timeout: float = Field(10.0, gt=0, description="Longest time for a request's headers, seconds; past it 408.")
    silence_timeout: float = Field(
        30.0, gt=0, description="Longest time without anything of a request's body, seconds; past it 408."
    )
    body_timeout: float = Field(600.0, gt=0, description="Longest time for a request's body, seconds; past it 408.")
    keep_alive: int = Field(
        75, ge=0, description="Seconds that a connection stays open after an answer; more than a load balancer's own."
    )
    max_body_bytes: int = Field(100 * MIB, gt=0, description="Largest request body; past it 413.")
    max_decoded_bytes: int = Field(256 * MIB, gt=0, description="Largest decompressed file; past it 413.")
    max_inflight_bytes: int = Field(
        512 * MIB, gt=0, description="Bytes of bodies held at once, over all requests; past it they wait, then 429."
    )
    max_axis: int = Field(
        1024, gt=0, description="Largest size of an input's dynamic axis past the batch, as the number of variates."
    )
    compress_from: int = Field(
        4096, ge=0, description="Smallest tensor answer that is compressed when its client accepts that, bytes."
    )
    traces: bool = Field(
        False, description="Send OpenTelemetry traces as the variables OTEL_* say; needs the extra otel."
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Log level.")
    log_format: str = Field("text", pattern="^(text|json)$", description="Form of log lines: text or json.")
    log_requests: bool = Field(False, description="Write a line about every request.")
    log_slow: float = Field(
        0.0, ge=0, description="Write a line about requests that took at least so many seconds; 0: about none."
    )

    @field_validator(
        "grpc_port", "trusted_keys", "custom_ops", "keys", "config", "tls_certificate", "tls_key", mode="before"
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value

    @field_validator("port", "grpc_port", mode="before")
    @classmethod
    def _no_link(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith(("tcp://", "udp://")):
            raise ValueError(
                "Kubernetes sets this variable itself where a Service is called kronserve; "
                "enableServiceLinks: false in the pod's spec ends that"
            )
        return value

    @field_validator("host")
    @classmethod
    def _no_brackets(cls, value: str) -> str:
        if value.startswith("["):
            raise ValueError("an IPv6 address stands without brackets here")
        return value

    @field_validator("repository", "cache_dir", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("an empty path")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        listed = [origin.strip() for origin in value.split(",") if origin.strip()]
        for origin in listed:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin as browsers send it: scheme://host[:port], in lower case")
        if "*" in listed and len(listed) > 1:
            raise ValueError("* is every origin, and stands alone")
        return ",".join(listed)

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key come together")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code first, then the environment, then the file that one of them names."""
        assert isinstance(init_settings, InitSettingsSource)
        file = init_settings.init_kwargs.get("config") or env_settings().get("config")
        if not file or str(file).lower() == "none":
            return init_settings, env_settings
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)

    def cpu_cores(self) -> int:
        """Cores this process may use: its affinity, or a container's CPU quota where that is less."""
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(affinity, ceil(_cpu_quota())))


def _cpu_quota() -> float:
    """Cores that the control group grants (cgroup v2's cpu.max, v1's cfs_quota); infinity without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return 1e9
    return int(quota) / int(period) if quota.isdigit() else 1e9
