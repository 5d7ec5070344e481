"""bridged e-mails every new document of a switched folder to its client's collection email, once.

In the order of a document's path: `config` says which folders are switched on, and `ged` touches the clients' files.
`watching` gives hints, `intake` turns a file into a row, and `journal` keeps every row over any crash. `dispatch`
takes the row to the relay, `line` knows whether the way there is open, and `relay` holds one SMTP conversation.
`marker` writes the marker beside the document. `alerts` tells a person who must act. `daemon` runs all of it in
threads, and `commands` is the command line. Every package uses `model`, `names`, `paths`, `reasons`, `mail` and `logs`.

docs/architecture.md has the doors of the packages and a document's path; docs/words.md has the words.
"""

__version__ = "0.1.0"
