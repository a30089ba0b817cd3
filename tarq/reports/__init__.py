"""Reports of results: one self-contained HTML page and a Markdown summary, from a study or from ``tarq evaluate``."""
