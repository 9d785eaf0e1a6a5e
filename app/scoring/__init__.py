"""Files of texts in, files of answers out: `python -m app score`."""
