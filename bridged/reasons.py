"""The sentences that say why a document is withdrawn, held or adopted, when more than one module says them. Pure."""

from __future__ import annotations

from typing import Final

REPLACED: Final = "deleted before it was sent; another document has its path"
IGNORED_NOW: Final = "renamed to a name that is ignored"
ADOPTED: Final = "its valid marker was beside it"
MISSED: Final = "deposited while the daemon was stopped"
SENT_ON_PURPOSE: Final = "sent on purpose"
