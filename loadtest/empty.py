"""The least that FastAPI answers: what the framework alone costs."""

from fastapi import FastAPI

app = FastAPI()


@app.post("/")
async def empty() -> dict[str, bool]:
    """Answer at once."""
    return {"ok": True}
