"""The secrets, read from where the configuration says they are, at the moment they are needed."""

from __future__ import annotations

import os
from pathlib import Path

from bridged.model import UserError
from bridged.settings import Smtp, is_utf8


def password(smtp: Smtp) -> str | None:
    """The relay's password, read at the moment it is needed; None where none is configured.

    Raises UserError, which never shows it.
    """
    if smtp.password_env:
        place = f"The environment variable {smtp.password_env} (smtp.password_env)"
        secret = os.environ.get(smtp.password_env, "")
        if not secret:
            raise UserError(f"{place} is not set: set it.")
        if not is_utf8(secret):
            raise UserError(f"{place} is not UTF-8: set it again.")
        return secret
    return _secret_file(smtp.password_file) if smtp.password_file else None


def _secret_file(name: str) -> str:
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not os.path.isabs(name) and not credentials:
        raise UserError(
            f"The password file {name} (smtp.password_file) cannot be read: it is relative to $CREDENTIALS_DIRECTORY,"
            " which systemd sets. Run this under systemd, or name the file by its absolute path."
        )
    path = Path(credentials) / name
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"The password file {path} (smtp.password_file) cannot be read ({why}): correct it.") from None
    if not secret:
        raise UserError(f"The password file {path} (smtp.password_file) is empty: write the password into it.")
    return secret
