"""Load on a running service: a corpus that may be shipped, a light client, a benchmark."""
