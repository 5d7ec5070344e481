"""The secrets, read at the moment of a sign-in from the places that the configuration names."""

from __future__ import annotations

import os
from pathlib import Path

from bridged.config.settings import OAuth, Smtp
from bridged.config.values import is_utf8
from bridged.model import UserError


class TokenUnavailable(Exception):
    """No token can be had now, and waiting helps: a sentence without a secret."""


def password(smtp: Smtp) -> str | None:
    """The relay's password, read anew; None where none is configured. Raises UserError, which never shows it."""
    if smtp.password_env:
        place = f"The environment variable {smtp.password_env} (smtp.password_env)"
        secret = os.environ.get(smtp.password_env, "")
        if not secret:
            raise UserError(f"{place} is not set: set it.")
        if not is_utf8(secret):
            raise UserError(f"{place} is not UTF-8: set it again.")
        return secret
    return _secret_file(smtp.password_file, "password", "smtp.password_file") if smtp.password_file else None


def client_secret(auth: OAuth) -> str:
    """The application's client secret (RFC 6749 2.3.1), read anew. Raises UserError, which never shows it."""
    return _secret_file(auth.client_secret_file or "", "client secret", "smtp.auth.client_secret_file")


def service_account_key(auth: OAuth) -> str:
    """The text of the service account's key file, read anew. Raises UserError, which never shows it."""
    return _secret_file(auth.service_account_file or "", "service account key", "smtp.auth.service_account_file")


def _secret_file(name: str, what: str, key: str) -> str:
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not os.path.isabs(name) and not credentials:
        raise UserError(
            f"The {what} file {name} ({key}) cannot be read: it is relative to $CREDENTIALS_DIRECTORY,"
            " which systemd sets. Run this under systemd, or name the file by its absolute path."
        )
    path = Path(credentials) / name
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"The {what} file {path} ({key}) cannot be read ({why}): correct it.") from None
    if not secret:
        raise UserError(f"The {what} file {path} ({key}) is empty: write the {what} into it.")
    return secret
