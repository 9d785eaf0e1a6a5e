"""FastAPI with one run per request in its thread pool, no batching: what most tutorials end with.

https://fastapi.tiangolo.com/async/#path-operation-functions
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from loadtest.peers.model import Model

app = FastAPI()
model = Model()


class Request(BaseModel):
    """One text."""

    text: str


@app.post("/predict")
def predict(request: Request) -> dict[str, Any]:
    """Answer in a thread of the pool, because this function is not async."""
    (answer,) = model.predict([request.text])
    return answer
