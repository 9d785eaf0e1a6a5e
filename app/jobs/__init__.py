"""Batch jobs: texts that wait in a database for their answers, and answers that wait there for whoever asked."""
