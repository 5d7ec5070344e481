"""bridged e-mails every new document of a switched folder to its client's collection email, once."""

__version__ = "0.1.0"
