"""Words: how text is split into them, how frequent they are, which are rare."""
