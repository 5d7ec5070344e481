"""A marker's content: JSON in UTF-8, one field a line. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Final

_ENCODED: Final = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Marker:
    """The fields of a marker. Times are ISO 8601, UTC, as `utc` writes them."""

    status: str
    document: str
    client: str
    collection_email: str
    sha256: str
    size: int
    message_id: str
    deposited_at: str
    validated_at: str
    relay_reply: str
    attempts: int
    bridged: str

    def to_json(self) -> bytes:
        """The content of the file: UTF-8, one field a line. A character without UTF-8 is written as `?`."""
        # Not json.dumps with an indent, because that is written in Python and takes longer than the writing.
        lines = ",\n".join([f'  "{name}": {_ENCODED(getattr(self, name))}' for name in self.__slots__])
        return f"{{\n{lines}\n}}\n".encode("utf-8", "replace")

    @classmethod
    def from_json(cls, content: bytes) -> Marker | None:
        """The marker with this content; None where the content is no marker's. Unknown fields are passed over."""
        try:
            found: Any = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested too deep
            return None
        if not isinstance(found, dict) or found.get("status") != "validated" or not found.get("message_id"):
            return None
        values: dict[str, Any] = {field.name: found.get(field.name) for field in fields(cls)}
        right = all(type(values[field.name]).__name__ == field.type for field in fields(cls))
        return cls(**values) if right and all(map(_storable, values.values())) else None


def _storable(value: str | int) -> bool:
    """True for a value that SQLite takes. A client may plant a marker whose values would fail in the journal."""
    if isinstance(value, int):
        return 0 <= value < 1 << 63
    return not any("\ud800" <= character <= "\udfff" for character in value)
