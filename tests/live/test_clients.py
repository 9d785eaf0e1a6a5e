"""Clients that others wrote for other servers, as their users run them."""

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from tritonclient.utils import InferenceServerException

from app.inference.bundle import Manifest, open_bundle
from app.settings import Settings
from tests.live.served import ROOT, RunningServer

_TEXTS = ["太好吃了，下次还来", "请问周末几点开门？", "等了两个小时，饭都凉了"]
_LABELS = ["positive", "neutral", "negative"]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return open_bundle(ROOT / Settings().model.path).manifest


def test_the_client_of_hugging_face_is_answered(server: RunningServer) -> None:
    client = InferenceClient(server.address)
    for text, label in zip(_TEXTS, _LABELS, strict=True):
        found = client.text_classification(text)
        assert found[0].label == label
        assert sorted(each.label for each in found) == sorted(_LABELS)
        assert sum(each.score for each in found) == pytest.approx(1, abs=1e-4)
        (best,) = client.text_classification(text, top_k=1, function_to_apply="softmax")
        assert best.label == label
        assert client.text_classification(text, function_to_apply="none")[0].score <= 0


def test_the_client_of_hugging_face_tells_our_errors(server: RunningServer) -> None:
    client = InferenceClient(server.address)
    with pytest.raises(HfHubHTTPError, match="empty or blank"):
        client.text_classification(" ")
    with pytest.raises(HfHubHTTPError, match="'softmax' or 'none'"):
        client.text_classification("好", function_to_apply="sigmoid")


@pytest.fixture
def triton_client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address.removeprefix("http://")) as client:
        yield client


def _input(texts: list[str], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("text", [len(texts)], "BYTES")
    return tensor.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)


def test_the_client_of_triton_finds_server_and_model(
    triton_client: triton.InferenceServerClient, manifest: Manifest
) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert "binary_tensor_data" in triton_client.get_server_metadata()["extensions"]
    for version in ("", manifest.version):
        assert triton_client.is_model_ready(manifest.name, version)
        assert triton_client.get_model_metadata(manifest.name, version)["versions"] == [manifest.version]
    assert not triton_client.is_model_ready("other")


def test_the_client_of_triton_is_answered_in_binary_and_in_json(
    triton_client: triton.InferenceServerClient, manifest: Manifest
) -> None:
    in_binary = triton_client.infer(manifest.name, [_input(_TEXTS)], request_id="7")
    assert [label.decode() for label in in_binary.as_numpy("label")] == _LABELS
    probabilities = in_binary.as_numpy("probabilities")
    assert (probabilities.shape, probabilities.dtype) == ((3, 3), np.float32)
    assert [manifest.labels[column] for column in probabilities.argmax(axis=1)] == _LABELS
    assert in_binary.get_response()["id"] == "7"
    in_json = triton_client.infer(
        manifest.name,
        [_input(_TEXTS, binary=False)],
        manifest.version,
        outputs=[triton.InferRequestedOutput("probabilities", binary_data=False)],
    )
    assert in_json.as_numpy("probabilities") == pytest.approx(probabilities, abs=0.01)
    assert in_json.as_numpy("label") is None


def test_the_client_of_triton_tells_our_errors(triton_client: triton.InferenceServerClient, manifest: Manifest) -> None:
    with pytest.raises(InferenceServerException, match="Text 1: The text is empty or blank"):
        triton_client.infer(manifest.name, [_input(["好", ""])])
    with pytest.raises(InferenceServerException, match="No such model"):
        triton_client.infer("other", [_input(["好"])])
