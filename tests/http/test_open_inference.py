import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.inference.batcher import BatchPolicy
from app.rollout import Rollout
from app.telemetry.prometheus import Metrics
from tests.http.served import client_of_models
from tests.served_model import serving_model
from tests.tiny_bundle import TinyModel, write_tiny_bundle

pytestmark = pytest.mark.anyio

_INFER = "/v2/models/tiny/infer"


def _input(texts: Sequence[object], shape: Sequence[int] | None = None, **more: object) -> dict[str, Any]:
    return {"name": "text", "shape": shape or [len(texts)], "datatype": "BYTES", "data": texts, **more}


async def _infer(client: httpx.AsyncClient, *inputs: object, **fields: object) -> Any:
    response = await client.post(_INFER, json={"inputs": inputs, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def _refusal(client: httpx.AsyncClient, body: object) -> str:
    response = await client.post(_INFER, json=body)
    assert response.status_code == 400, response.text
    assert response.json().keys() == {"error"}
    return str(response.json()["error"])


async def test_the_server_tells_name_version_and_extensions(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v2")).json()
    assert body.keys() == {"name", "version", "extensions"}
    assert body["extensions"] == ["binary_tensor_data"]


@pytest.mark.parametrize("state", ["live", "ready"])
async def test_the_server_tells_its_health(client: httpx.AsyncClient, state: str) -> None:
    response = await client.get(f"/v2/health/{state}")
    assert (response.status_code, response.json()) == (200, {state: True})


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/versions/0.0.1"])
async def test_a_model_tells_its_tensors(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).json() == {
        "name": "tiny",
        "versions": ["0.0.1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [-1, 3],
                "parameters": {"labels": "negative,neutral,positive"},
            },
        ],
    }
    assert (await client.get(f"{path}/ready")).json() == {"name": "tiny", "ready": True}


@pytest.mark.parametrize("name", ["other", "other/versions/0.0.1", "tiny/versions/0.0.2", "tiny/versions/1"])
async def test_an_unknown_model_or_version_is_a_404_that_names_the_right_one(
    client: httpx.AsyncClient, name: str
) -> None:
    body = {"inputs": [_input(["好"])]}
    for response in (
        await client.get(f"/v2/models/{name}"),
        await client.get(f"/v2/models/{name}/ready"),
        await client.post(f"/v2/models/{name}/infer", json=body),
    ):
        assert response.status_code == 404
        assert "tiny, version 0.0.1" in response.json()["error"]


async def test_an_unknown_address_below_v2_is_told_in_the_protocol_s_words(client: httpx.AsyncClient) -> None:
    response = await client.get("/v2/repository/index")
    assert (response.status_code, response.json().keys()) == (404, {"error"})


async def test_the_answer_has_a_label_and_the_probabilities_of_all_labels_for_each_text(
    client: httpx.AsyncClient,
) -> None:
    ours = (await client.post("/v1/sentiment/batch", json={"texts": ["好", "差饭"]})).json()["results"]
    answer = await _infer(client, _input(["好", "差饭"]), id="42")
    assert {key: answer[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "tiny",
        "model_version": "0.0.1",
        "id": "42",
    }
    label, probabilities = answer["outputs"]
    assert label == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["positive", "negative"]}
    assert (probabilities["name"], probabilities["datatype"], probabilities["shape"]) == (
        "probabilities",
        "FP32",
        [2, 3],
    )
    expected = [share for result in ours for share in result["probabilities"].values()]
    assert probabilities["data"] == pytest.approx(expected, abs=1e-4)


async def test_a_version_in_the_address_is_the_one_that_answers(client: httpx.AsyncClient) -> None:
    response = await client.post("/v2/models/tiny/versions/0.0.1/infer", json={"inputs": [_input(["好"])]})
    assert response.json() == await _infer(client, _input(["好"]))


@pytest.mark.parametrize("texts", [["好", "差"], [["好"], ["差"]]])
async def test_a_column_of_texts_is_answered_with_a_column_of_labels(
    client: httpx.AsyncClient, texts: Sequence[object]
) -> None:
    label, probabilities = (await _infer(client, _input(texts, [2, 1])))["outputs"]
    assert (label["shape"], label["data"]) == ([2, 1], ["positive", "negative"])
    assert probabilities["shape"] == [2, 3]


async def test_no_texts_have_empty_tensors(client: httpx.AsyncClient) -> None:
    outputs = (await _infer(client, _input([], [0])))["outputs"]
    assert [(output["shape"], output["data"]) for output in outputs] == [([0], []), ([0, 3], [])]


async def test_only_the_outputs_asked_for_are_returned_in_their_order(client: httpx.AsyncClient) -> None:
    for names in (["probabilities"], ["label"], ["probabilities", "label"]):
        answer = await _infer(client, _input(["好"]), outputs=[{"name": name} for name in names])
        assert [output["name"] for output in answer["outputs"]] == names


async def test_parameters_that_are_not_known_are_ignored(client: httpx.AsyncClient) -> None:
    answer = await _infer(client, _input(["好"], parameters={"content_type": "str"}), parameters={"priority": 1})
    assert answer == await _infer(client, _input(["好"]))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [_input(["好"]), _input(["好"])]}, "inputs"),
        ({"inputs": [{**_input(["好"]), "name": "texts"}]}, "inputs/0/name"),
        ({"inputs": [{**_input(["好"]), "datatype": "FP32"}]}, "inputs/0/datatype"),
        ({"inputs": [{**_input(["好"]), "data": None}]}, "inputs/0/data"),
        ({"inputs": [_input([5])]}, "inputs/0/data"),
        ({"inputs": [_input(["好"], [2])]}, "inputs/0/data"),
        ({"inputs": [_input(["好", "差"], [1, 2])]}, "inputs/0/shape"),
        ({"inputs": [_input(["好"], [-1])]}, "inputs/0/shape"),
        ({"inputs": [_input(["好"], [1, 1, 1])]}, "inputs/0/shape"),
        ({"inputs": [_input(["好"], [2**62, 2**62])]}, "inputs/0/shape"),
        ({"inputs": [_input(["好"], [10**4000])]}, "inputs/0/shape"),
        ({"inputs": [_input(["好"], parameters={"binary_data_size": 5})]}, "binary_data_size"),
        ({"inputs": [_input(["好"])], "outputs": [{"name": "logits"}]}, "outputs/0/name"),
        ({"inputs": [_input(["好"])], "outputs": [{"name": "label"}] * 3}, "outputs"),
        (
            {"inputs": [_input(["好"])], "outputs": [{"name": "label", "parameters": {"classification": 2}}]},
            "outputs/0/parameters/classification",
        ),
        ({"inputs": [_input(["好"])], "id": 5}, "id"),
    ],
)
async def test_a_request_that_cannot_be_honoured_is_told_where(
    client: httpx.AsyncClient, body: object, said: str
) -> None:
    assert said in await _refusal(client, body)


def _in_binary(texts: Sequence[bytes], **fields: object) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request whose texts follow the JSON, and its headers."""
    tail = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    tensor = {**_input([], [len(texts)]), "parameters": {"binary_data_size": len(tail)}}
    del tensor["data"]
    head = json.dumps({"inputs": [tensor], **fields}).encode()
    return head + tail, {"Inference-Header-Content-Length": str(len(head))}


async def test_tensors_may_travel_in_binary(client: httpx.AsyncClient) -> None:
    content, headers = _in_binary(["好".encode(), "差饭".encode()], parameters={"binary_data_output": True})
    response = await client.post(_INFER, content=content, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/octet-stream"
    length = int(response.headers["Inference-Header-Content-Length"])
    label, probabilities = json.loads(response.content[:length])["outputs"]
    assert label["parameters"]["binary_data_size"] == 24
    assert probabilities["parameters"]["binary_data_size"] == 24
    tail = response.content[length:]
    assert tail[:24] == b"\x08\0\0\0positive\x08\0\0\0negative"
    in_json = (await _infer(client, _input(["好", "差饭"])))["outputs"][1]["data"]
    assert struct.unpack("<6f", tail[24:]) == pytest.approx(in_json)


async def test_each_output_travels_as_it_was_asked_to(client: httpx.AsyncClient) -> None:
    content, headers = _in_binary(
        ["好".encode()],
        parameters={"binary_data_output": True},
        outputs=[{"name": "label", "parameters": {"binary_data": False}}, {"name": "probabilities"}],
    )
    response = await client.post(_INFER, content=content, headers=headers)
    length = int(response.headers["Inference-Header-Content-Length"])
    label, probabilities = json.loads(response.content[:length])["outputs"]
    assert label["data"] == ["positive"]
    assert "data" not in probabilities
    assert len(response.content) == length + 12


@pytest.mark.parametrize("texts", [[b"\xff"], ["好".encode()[:2]]])
async def test_binary_that_is_no_utf_8_is_refused(client: httpx.AsyncClient, texts: list[bytes]) -> None:
    content, headers = _in_binary(texts)
    response = await client.post(_INFER, content=content, headers=headers)
    assert response.status_code == 400
    assert "UTF-8" in response.json()["error"]


async def test_binary_that_ends_too_soon_or_goes_on_is_refused(client: httpx.AsyncClient) -> None:
    content, headers = _in_binary([b"abc", b"de"])
    for wrong in (content[:-1], content + b"x", content[:-6]):
        response = await client.post(_INFER, content=wrong, headers=headers)
        assert response.status_code == 400
        assert "bytes follow the JSON" in response.json()["error"]
    forged = content.replace(struct.pack("<I", 2), struct.pack("<I", 2**32 - 1))
    response = await client.post(_INFER, content=forged, headers=headers)
    assert (response.status_code, "Text 1 ends after" in response.json()["error"]) == (400, True)


@pytest.mark.parametrize("said", ["", "-1", "five", "1e3", "9" * 400])
async def test_a_length_of_the_json_that_cannot_be_is_refused(client: httpx.AsyncClient, said: str) -> None:
    content, _ = _in_binary([b"abc"])
    response = await client.post(_INFER, content=content, headers={"Inference-Header-Content-Length": said})
    assert response.status_code == 400
    assert "Inference-Header-Content-Length" in response.json()["error"]


async def test_a_version_is_answered_by_itself_though_a_candidate_is_on_trial(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    policy = BatchPolicy(max_items=8, max_tokens=64, max_waiting_items=8, max_waiting_tokens=64)
    found = {}
    async with (
        Rollout(lambda path: serving_model(path, TinyModel(), policy), tiny_bundle) as models,
        client_of_models(models, Metrics()) as client,
    ):
        await models.try_candidate(write_tiny_bundle(tmp_path, version="0.0.2"), share=1.0, answers=True)
        for path in ("tiny", "tiny/versions/0.0.1", "tiny/versions/0.0.2"):
            response = await client.post(f"/v2/models/{path}/infer", json={"inputs": [_input(["好"])]})
            found[path] = response.json()["model_version"]
    assert found == {"tiny": "0.0.2", "tiny/versions/0.0.1": "0.0.1", "tiny/versions/0.0.2": "0.0.2"}
