"""What a terminal shows: commands, options made from the configuration, tables, progress."""
