"""coordjournal: an append-only decision log for federated wikis, in git, folded into what is true."""

__version__ = "0.1.0"
