"""A configuration file read, validated, and refused with every problem at once."""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from bridged.config import conflicts, problems
from bridged.config.conflicts import Reached
from bridged.config.lines import Lines, Problem, read
from bridged.config.settings import Settings
from bridged.ged import Calls, files
from bridged.model import UserError

DEFAULT_FILE: Final = Path("/etc/bridged/bridged.yaml")
LARGEST: Final = 1_000_000  # bytes of a configuration file
DRY_RUN: Final = "dry-run"  # the state directory of a dry run, below the real one
_SECRETS: Final = ("password", "passwd", "pass", "passphrase", "mot_de_passe")


class ConfigError(UserError):
    """The configuration is refused. `problems` holds each mistake."""

    exit_code = 78

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def find_config(option: Path | None) -> Path:
    """The option --config, or $BRIDGED_CONFIG, or /etc/bridged/bridged.yaml."""
    return option or Path(os.environ.get("BRIDGED_CONFIG") or DEFAULT_FILE)


def load(path: Path, *, dry_run: bool = False) -> Settings:
    """The settings in a file. Raises ConfigError with the first hundred problems, an unreadable file included.

    A dry run has a state directory of its own, below the real one, and sends no alert.
    """
    lines = read(_content(path), str(path))
    if not isinstance(lines.value, dict) and not lines.problems:
        lines.add((), "The file holds no configuration.", "Begin with smtp: and clients:.")
    if not isinstance(lines.value, dict):
        raise ConfigError(lines.found())
    as_written(lines)
    _passwords(lines)
    settings = _validated(lines)
    conflicts.note(lines, _resolved)
    if lines.problems or settings is None:
        raise ConfigError(lines.found())
    if dry_run:
        return settings.model_copy(update={"state_dir": settings.state_dir / DRY_RUN, "alerts": None})
    return settings


def _content(path: Path) -> str:
    def refuse(message: str, remedy: str) -> ConfigError:
        return ConfigError([Problem(str(path), 1, "", message, remedy)])

    try:
        # O_NONBLOCK, because the opening of a FIFO would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise refuse("This is not a regular file.", "Name a YAML file with --config.")
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise refuse(
            f"The file cannot be read: {error.strerror}.", "Create it, or name another with --config."
        ) from None
    if len(raw) > LARGEST:
        raise refuse("The file is larger than 1 MB.", "This is hardly a configuration of bridged.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refuse("The file is not UTF-8.", "Save it as UTF-8 text.") from None


def as_written(lines: Lines) -> None:
    """Put back the text of names. YAML reads `2026` as a number and `No` as a boolean; both may name a folder."""
    for where, text in lines.texts.items():
        if tuple(part for part in where if isinstance(part, str)) in _NAMES:
            parent = lines.value
            for part in where[:-1]:
                parent = parent[part]
            parent[where[-1]] = text


_NAMES: Final = {
    ("ignore",),
    ("smtp", "username"),
    ("smtp", "auth", "tenant"),
    ("smtp", "auth", "client_id"),
    ("alerts", "digest"),
    ("alerts", "smtp", "username"),
    ("clients", "name"),
    ("clients", "switched_folders"),
    ("clients", "switched_folders", "path"),
    ("clients", "switched_folders", "exclude"),
}


def _passwords(lines: Lines) -> None:
    for where in [w for w in reversed(lines.lines) if w and str(w[-1]).casefold() in _SECRETS]:
        parent = lines.value
        for part in where[:-1]:
            parent = parent[part]
        del parent[where[-1]]
        remedy = "Put it into a file of its own and name that with smtp.password_file."
        lines.add(where, "A password must not stand in this file.", remedy)


def _validated(lines: Lines) -> Settings | None:
    try:
        return Settings.model_validate(lines.value)
    except ValidationError as error:
        problems.note(error, lines)
        return None


def _resolved(geds: Sequence[str]) -> Iterator[Reached]:
    """Each GED with its links followed and its mounts, or by its name where its file system does not answer in 1 s.

    Otherwise one share that hangs would keep the firm from every reload.
    """
    calls, hanging, mounts = Calls(time.monotonic), 0, _mount_table()
    for ged in geds:
        found = Reached(os.path.normpath(ged))
        if hanging < 3:
            call = calls.start(os.fsencode(ged), functools.partial(_reached, ged, mounts))
            if call.wait(1.0):
                found = call.result()
            else:
                hanging += 1
        yield found


def _mount_table() -> files.MountTable | None:
    try:
        return files.MountTable()
    except OSError:  # a sandbox may hide it; then links alone are followed
        return None


def _reached(ged: str, mounts: files.MountTable | None) -> Reached:
    real = os.path.realpath(ged)
    if mounts is None:
        return Reached(real)
    try:
        fd = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # away, or no directory: `check` and the log tell
        return Reached(real)
    try:
        return Reached(real, mounts.location(fd), tuple(mounts.below(os.fsencode(real))))
    except OSError:  # unmounted in this instant
        return Reached(real)
    finally:
        os.close(fd)
