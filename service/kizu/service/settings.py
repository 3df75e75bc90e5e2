"""Settings of the service: `KIZU_*` environment variables, each with a default that needs nothing else.

`KIZU_DATABASE_URL` is the switch from one machine's SQLite file to PostgreSQL.
"""

from __future__ import annotations

import os
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kizu.errors import UserError
from kizu.models.bundle import Device

MIB = 1024 * 1024


class Settings(BaseSettings):
    """Every setting of the service; `max_body_bytes` is `KIZU_MAX_BODY_BYTES`, and so on."""

    model_config = SettingsConfigDict(env_prefix="KIZU_", extra="ignore")

    data_dir: Path = Path("var")
    """Folder of the database, the images and the models, unless set below."""
    database_url: str | None = None
    """`sqlite:///path` or `postgresql+psycopg://user@host/name`; default: `kizu.db` in `data_dir`."""
    blob_url: str | None = None
    """Folder (a path or file:// URL) for the images; default: `blobs` in `data_dir`."""
    models_dir: Path | None = None
    """Folder for the registered bundles; default: `models` in `data_dir`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    drain_seconds: float = Field(default=1.0, ge=0)
    """After SIGTERM: how long to report "not ready" while still accepting, so that a load balancer can stop sending."""

    device: Device = "auto"
    inference_threads: int = Field(default=0, ge=0)
    """Threads per ONNX Runtime session; 0: all cores."""
    max_batch: int = Field(default=16, ge=1, le=1024)
    batch_wait_ms: float = Field(default=2.0, ge=0, le=1000)
    """How long a batch waits for further images once its first one is there."""
    max_batch_pixels: int = Field(default=64_000_000, ge=1)
    """A batch ends here even if it could hold more images, so that large images do not exhaust memory."""
    decode_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    idle_models: int = Field(default=2, ge=0)
    """Versions kept loaded in addition to the champions, for heatmaps of older inspections."""

    max_body_bytes: int = Field(default=32 * MIB, ge=1)
    max_bundle_bytes: int = Field(default=2048 * MIB, ge=1)
    max_pixels: int = Field(default=50_000_000, ge=1)
    queue_size: int = Field(default=128, ge=1)
    """Inspections in work at once; more are answered 429."""
    max_pending_bytes: int = Field(default=1024 * MIB, ge=1)
    """Bytes of encoded and decoded images in work at once; more are answered 429."""
    request_deadline_s: float = Field(default=10.0, gt=0)
    """From the last byte of the body to the score; later is answered 503."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """For the body to arrive; later is answered 408."""

    idempotency_key_hours: float = Field(default=168.0, gt=0)
    """How long an Idempotency-Key is remembered after its inspection; later it counts as a new one."""

    time_zone: str = "UTC"
    """IANA name of the plant's time zone, in which its days begin: `Asia/Tokyo`."""

    audit_rate: float = Field(default=0.02, ge=0, le=1)
    """Probability with which a passed inspection becomes an audit sample."""
    recheck_rate: float = Field(default=0.5, ge=0, le=1)
    """Probability with which an audit sample that was found OK is reviewed again by somebody else."""

    @field_validator("time_zone")
    @classmethod
    def _known_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no time zone of the IANA database, such as Europe/Berlin") from error
        return name

    def resolved_database_url(self) -> str:
        """Return the SQLAlchemy URL; plain `postgresql://` means psycopg 3."""
        if self.database_url is None:
            return f"sqlite:///{(self.data_dir / 'kizu.db').absolute()}"
        for prefix in ("postgresql://", "postgres://"):
            if self.database_url.startswith(prefix):
                return "postgresql+psycopg://" + self.database_url.removeprefix(prefix)
        return self.database_url

    def blob_dir(self) -> Path:
        """Return the folder of the images; raises UserError for a URL of another kind."""
        url = self.blob_url
        if url is None:
            return self.data_dir / "blobs"
        if url.startswith("file://"):
            return Path(url.removeprefix("file://"))
        if "://" in url:
            raise UserError(
                f"KIZU_BLOB_URL {url.split('://')[0]}:// is not supported.", "Give a folder or a file:// URL."
            )
        return Path(url)

    def bundle_dir(self) -> Path:
        """Return the folder of the registered bundles."""
        return self.models_dir or self.data_dir / "models"
