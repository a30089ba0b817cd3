"""Studies: grids of models, arms and draws of calibration speech, measured cell by cell. README.md says how."""
