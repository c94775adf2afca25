"""The tables of settings.toml: every setting of the product, with its type, limits and default.

Invariant: a table is frozen, and a key that it does not know is an error.
"""

import os
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_OWNER = 64
IGNORE = (
    ".*", "*.part", "*.filepart", "*.partial", "*.tmp", "*.temp", "*.crdownload", "*.download", "*.opdownload",
    "~$*", "*~", "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir", "#recycle", "$RECYCLE.BIN",
    "System Volume Information", "__MACOSX", "lost+found",
)  # fmt: skip


def _plain_name(value: str) -> str:
    if value and (value.startswith(".") or not all(c.isalnum() or c in "._-" for c in value) or len(value) > MAX_OWNER):
        raise ValueError(f"use at most {MAX_OWNER} letters, digits, '.', '_' and '-', and no leading dot")
    return value


def _prom(value: Path | Literal[""]) -> Path | Literal[""]:
    if value and Path(value).suffix != ".prom":
        raise ValueError("node_exporter reads files whose names end in .prom")
    return value


def _with_scene(value: tuple[str, ...]) -> tuple[str, ...]:
    if value and value not in (("scene",), ("scene", "faces")):
        raise ValueError('write ["scene"], ["scene", "faces"], or [] to have the photos decide')
    return value


class Table(BaseModel):
    """A table of settings.toml: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)


class Tray(Table):
    """Where photos come and go."""

    root: Path = Path("tray")
    settle_seconds: float = Field(0.5, ge=0.0, le=3600)
    ignore: tuple[str, ...] = IGNORE
    max_file_bytes: int = Field(200_000_000, ge=1)
    max_pixels: int = Field(100_000_000, ge=1)
    poll: Literal["auto", "always", "never"] = "auto"


class Journal(Table):
    """The JSON log of decisions."""

    root: Path = Path("log")
    segment_bytes: int = Field(64 * 1024 * 1024, ge=4096)


class Daemon(Table):
    """How the daemon works."""

    name: Annotated[str, AfterValidator(_plain_name)] = ""
    batch_size: int = Field(32, ge=1, le=1024)
    batch_wait_seconds: float = Field(0.05, ge=0.0, le=3600)
    rescan_seconds: float = Field(30.0, ge=0.1, le=86_400)
    max_attempts: int = Field(3, ge=1, le=100)
    decode_seconds: float = Field(60.0, gt=0.0)
    review_below: float = Field(0.0, ge=0.0, le=1.0)
    audit_fraction: float = Field(0.0, ge=0.0, le=1.0)
    learn_seconds: float = Field(3600.0, ge=0.0, le=31_536_000)
    threads: int = Field(0, ge=0, le=256)

    @property
    def owner(self) -> str:
        """The name that this daemon asks for: `name`, else the host's."""
        return (
            self.name
            or "".join(c if c.isalnum() or c in "_-" else "-" for c in socket.gethostname())[:MAX_OWNER]
            or "host"
        )

    @property
    def cores(self) -> int:
        """How many threads decode and predict: `threads`, else one for each core that this process may use."""
        return self.threads or len(os.sched_getaffinity(0))


class Models(Table):
    """Where bundles are published."""

    root: Path = Path("models")
    keep: int = Field(10, ge=1)


class Metrics(Table):
    """Figures for Prometheus: a textfile of node_exporter's."""

    file: Annotated[Path | Literal[""], AfterValidator(_prom)] = ""
    seconds: float = Field(15.0, ge=1.0, le=3600)


class Dataset(Table):
    """Where approved examples are: one folder per class."""

    root: Path = Path("training")


class Trainer(Table):
    """How models are made. A zero stands for the architecture's own value."""

    runs: Path = Path("runs")
    architecture: str = "efficientnet_lite0"
    views: Annotated[tuple[Literal["scene", "faces"], ...], AfterValidator(_with_scene)] = ()
    image_size: int = Field(0, ge=0, le=2048)
    batch_size: int = Field(32, ge=1, le=4096)
    epochs: int = Field(0, ge=0, le=100_000)
    learning_rate: float = Field(0.0, ge=0.0)
    seed: int = Field(0, ge=0, lt=2**31)
    validation_fraction: float = Field(0.15, gt=0.0, lt=0.5)
    test_fraction: float = Field(0.15, gt=0.0, lt=0.5)
    fine_tune: bool = True
    drop_suspects: float = Field(0.0, ge=0.0, le=0.3)
    label_smoothing: float = Field(0.1, ge=0.0, le=0.5)
    patience: int = Field(5, ge=1)
    stop_at_accuracy: float = Field(0.0, ge=0.0, le=1.0)
    stop_below_loss: float = Field(0.0, ge=0.0)
    hooks: str = ""
    profile: bool = False
    least_accuracy: float = Field(0.6, ge=0.0, le=1.0)
    full_from: int = Field(200, ge=10)
    precision: Literal["float32", "float16", "int8"] = "float16"
