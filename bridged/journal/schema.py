"""The versions of the journal's schema."""

from __future__ import annotations

from typing import Final

_KNOWN: Final = """
CREATE TABLE mounts (path BLOB PRIMARY KEY, source TEXT NOT NULL, point BLOB NOT NULL, inode INTEGER NOT NULL,
    fsid TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE folders (ged BLOB NOT NULL, pattern TEXT NOT NULL, since REAL NOT NULL, PRIMARY KEY (ged, pattern))
    WITHOUT ROWID;
CREATE TABLE directories (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
CREATE TABLE known (
    directory INTEGER NOT NULL, name BLOB NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, document INTEGER, gone_at REAL,
    PRIMARY KEY (directory, name)) WITHOUT ROWID;
CREATE INDEX known_by_time ON known (mtime_ns, size);
CREATE INDEX known_gone ON known (gone_at) WHERE gone_at IS NOT NULL;
"""

_SCHEMA_1: Final = (
    _KNOWN
    + """
CREATE TABLE documents (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, ged BLOB NOT NULL,
    path BLOB NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    inode INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL DEFAULT '', collection_email TEXT NOT NULL, message_id TEXT NOT NULL UNIQUE,
    date TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, uncertain INTEGER NOT NULL DEFAULT 0,
    dotted INTEGER NOT NULL DEFAULT 0, deposited_at REAL NOT NULL, queued_at REAL, sent_at REAL,
    validated_at REAL, due_at REAL NOT NULL DEFAULT 0, relay_reply TEXT NOT NULL DEFAULT '',
    marker BLOB NOT NULL DEFAULT x'', marker_due REAL);
CREATE INDEX documents_by_state ON documents (state, client, seq);
CREATE INDEX documents_by_path ON documents (path);
CREATE INDEX documents_by_marker ON documents (marker_due) WHERE marker_due IS NOT NULL;
CREATE TABLE attempts (document INTEGER NOT NULL, at REAL NOT NULL, outcome TEXT NOT NULL, reply TEXT NOT NULL);
CREATE INDEX attempts_by_document ON attempts (document);
"""
)
_SCHEMA_2: Final = """
ALTER TABLE documents ADD COLUMN released_at REAL;
CREATE TABLE kept (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE refused_addresses (address TEXT PRIMARY KEY, at REAL NOT NULL, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX attempts_by_time ON attempts (at);
CREATE INDEX documents_by_client ON documents (client, deposited_at);
CREATE INDEX documents_by_address ON documents (collection_email, sent_at);
CREATE INDEX documents_by_content ON documents (sha256, collection_email) WHERE sha256 <> '';
"""
_SCHEMA_3: Final = """
ALTER TABLE documents ADD COLUMN rule TEXT NOT NULL DEFAULT '';
ALTER TABLE documents ADD COLUMN passed TEXT NOT NULL DEFAULT '';
UPDATE documents SET passed = 'all' WHERE released_at IS NOT NULL;
ALTER TABLE directories ADD COLUMN times INTEGER;
ALTER TABLE directories ADD COLUMN children INTEGER;
ALTER TABLE folders ADD COLUMN read INTEGER NOT NULL DEFAULT 1;
CREATE TABLE packed (directory INTEGER PRIMARY KEY, read_ns INTEGER NOT NULL, records BLOB NOT NULL);
"""
# Each adds one version: a new journal goes through all of them.
SCHEMAS: Final = (_SCHEMA_1, _SCHEMA_2, _SCHEMA_3)
SCHEMA_VERSION: Final = len(SCHEMAS)
