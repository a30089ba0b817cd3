"""The testbed's files: a small recognizer and its synthetic speech. ``tarq.testbed`` checks and reads them."""
