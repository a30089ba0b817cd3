"""Between utterances and the model: teacher-forced batches to calibrate on, and transcripts."""
