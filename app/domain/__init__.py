"""What the service talks about: text, sentiment, errors. Standard library only."""
