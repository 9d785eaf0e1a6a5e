"""Client of the Chinese sentiment service.

Every request is tried again while the service is busy or away, and carries its deadline, so that nothing is computed
for a caller who has given up.
"""

from chinese_sentiment_client.clients import AsyncSentimentClient, SentimentClient
from chinese_sentiment_client.errors import Problem, SentimentError, UnexpectedAnswer, Unreachable
from chinese_sentiment_client.results import Answer, Emotion, Job, Model, TextError
from chinese_sentiment_client.retries import Retries

__all__ = [
    "Answer",
    "AsyncSentimentClient",
    "Emotion",
    "Job",
    "Model",
    "Problem",
    "Retries",
    "SentimentClient",
    "SentimentError",
    "TextError",
    "UnexpectedAnswer",
    "Unreachable",
]
