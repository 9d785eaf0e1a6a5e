"""Text in, sentiment out: bundle, tokenizer, session, engine, batcher, classifier."""
