"""The bridge as a plain script: watchdog, `smtplib.send_message` on one session that is kept, a marker.

script.py DIRECTORY PORT
"""

from __future__ import annotations

import smtplib
import sys
import threading
from email.message import EmailMessage
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer


class Forward(FileSystemEventHandler):
    """Mail what is new, in the thread of the observer."""

    def __init__(self, port: int) -> None:
        self.relay = smtplib.SMTP("127.0.0.1", port)
        self.seen: set[Path] = set()

    def on_created(self, event: FileSystemEvent) -> None:
        """A file that was moved in has its whole content."""
        self.forward(Path(str(event.src_path)))

    def on_moved(self, event: FileSystemEvent) -> None:
        """The same, where watchdog calls it so."""
        self.forward(Path(str(event.dest_path)))

    def forward(self, document: Path) -> None:
        """One mail, then the marker."""
        if document.suffix == ".sent" or document in self.seen or not document.is_file():
            return
        self.seen.add(document)
        mail = EmailMessage()
        mail["From"] = "factures@cabinet.example"
        mail["To"] = "c0@collecte.example"
        mail["Subject"] = document.name
        mail.set_content("A document.")
        content = document.read_bytes()
        mail.add_attachment(content, maintype="application", subtype="octet-stream", filename=document.name)
        self.relay.send_message(mail)
        document.with_name(f"{document.name}.sent").touch()


if __name__ == "__main__":
    observer = Observer()
    observer.schedule(Forward(int(sys.argv[2])), sys.argv[1], recursive=True)
    observer.start()
    print("ready", flush=True)
    threading.Event().wait()
