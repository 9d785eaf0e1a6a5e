"""Real-time Chinese sentiment: a BERT behind a REST API, and the pipeline that makes the model."""
