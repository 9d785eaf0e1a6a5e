import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi import FastAPI

from app import services
from app.inference.batcher import BatchPolicy
from app.inference.shedding import Shedder
from app.rollout import Rollout
from app.server import HandedServer
from app.services import Services
from app.telemetry.prometheus import Metrics
from tests.http.served import STREAM, GatedModel
from tests.served_model import serving_model

pytestmark = pytest.mark.anyio


async def test_a_handed_server_whose_model_hangs_falls_silent(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_STUCK_S", 0.0)
    model, policy = GatedModel(), BatchPolicy(max_items=1, max_tokens=64, max_waiting_items=1, max_waiting_tokens=64)
    app = FastAPI()
    config = uvicorn.Config(app)
    config.load()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        server = HandedServer(app, config, drain_s=0, channel=theirs)
        async with Rollout(lambda path: serving_model(path, model, policy), tiny_bundle) as models:
            shedder = Shedder(lambda: models.active.batcher)
            running = Services(models, tiny_bundle.parent, Metrics(), shedder, 1, 1, 1, STREAM, asyncio.Semaphore(1))
            server.lifespan = SimpleNamespace(state={"services": running})
            await server.on_tick(0)
            assert ours.recv(16) == bytes(8)
            asking = asyncio.create_task(models.active.classifier.classify("好", timeout_s=60))
            await asyncio.to_thread(model.entered.wait)
            await server.on_tick(0)
            with pytest.raises(BlockingIOError):
                ours.recv(16)
            model.gate.set()
            await asking
            await server.on_tick(0)
            assert ours.recv(16) == bytes(8)
