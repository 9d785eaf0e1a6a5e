"""Places that remember answers; each fulfils `app.inference.classifier.SentimentCache`."""
