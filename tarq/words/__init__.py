"""Words: how text is cut into them, how frequent they are, which are rare."""
