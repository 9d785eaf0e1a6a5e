"""Each way in which a request can be wrong."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.http.served import MAX_BODY_BYTES, MAX_BYTES, MAX_CHARACTERS, assert_problem, pointers

pytestmark = pytest.mark.anyio

_PATHS = ["/v1/sentiment", "/v1/sentiment/batch"]
_JSON = {"Content-Type": "application/json"}


async def _post(client: httpx.AsyncClient, content: str | bytes, path: str = "/v1/sentiment") -> httpx.Response:
    return await client.post(path, content=content, headers=_JSON)


@pytest.mark.parametrize("text", ["", " ", "\t\n　", "\u200b\ufeff\u200d", "<br/>"])
async def test_a_blank_text_is_refused(client: httpx.AsyncClient, text: str) -> None:
    problem = assert_problem(await _post(client, json.dumps({"text": text})), 422, "empty-text")
    assert pointers(problem) == ["#/text"]


@pytest.mark.parametrize("text", [None, 5, 1.5, True, ["好"], {"好": "好"}])
async def test_a_text_that_is_no_string_is_refused(client: httpx.AsyncClient, text: object) -> None:
    problem = assert_problem(await _post(client, json.dumps({"text": text})), 422, "invalid-request")
    assert pointers(problem) == ["#/text"]


async def test_a_missing_field_is_named(client: httpx.AsyncClient) -> None:
    assert pointers(assert_problem(await _post(client, "{}"), 422, "invalid-request")) == ["#/text"]
    assert pointers(assert_problem(await _post(client, "{}", _PATHS[1]), 422, "invalid-request")) == ["#/texts"]


@pytest.mark.parametrize("path", _PATHS)
async def test_an_unknown_field_is_named(client: httpx.AsyncClient, path: str) -> None:
    body = {"text": "好", "texts": ["好"], "langauge": "zh"}
    del body["texts" if path == "/v1/sentiment" else "text"]
    problem = assert_problem(await _post(client, json.dumps(body), path), 422, "invalid-request")
    assert pointers(problem) == ["#/langauge"]


async def test_every_wrong_field_is_named(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await _post(client, '{"text": 5, "b/c": 1, "d~e": 2}'), 422, "invalid-request")
    assert pointers(problem) == ["#/text", "#/b~1c", "#/d~0e"]


async def test_a_pointer_is_a_uri_fragment(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await _post(client, '{"text": "好", "a b": 1}'), 422, "invalid-request")
    assert pointers(problem) == ["#/a%20b"]


@pytest.mark.parametrize("body", ["[]", "null", "5", '"好"', "true", '["text"]'])
@pytest.mark.parametrize("path", _PATHS)
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: str, path: str) -> None:
    assert pointers(assert_problem(await _post(client, body, path), 422, "invalid-request")) == ["#"]


@pytest.mark.parametrize("path", _PATHS)
async def test_an_empty_body_is_refused(client: httpx.AsyncClient, path: str) -> None:
    assert pointers(assert_problem(await _post(client, "", path), 422, "invalid-request")) == ["#"]


async def test_a_text_of_too_many_characters_is_refused(client: httpx.AsyncClient) -> None:
    assert (await _post(client, json.dumps({"text": "a" * MAX_CHARACTERS}))).status_code == 200
    response = await _post(client, json.dumps({"text": "a" * (MAX_CHARACTERS + 1)}))
    problem = assert_problem(response, 422, "text-too-long")
    assert pointers(problem) == ["#/text"]
    assert f"{MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS}" in problem["detail"]


async def test_a_text_of_too_many_bytes_is_refused(client: httpx.AsyncClient) -> None:
    assert (await _post(client, json.dumps({"text": "好" * (MAX_BYTES // 3)}))).status_code == 200
    response = await _post(client, json.dumps({"text": "好" * (MAX_BYTES // 3 + 1)}))
    problem = assert_problem(response, 422, "text-too-long")
    assert f"{MAX_BYTES + 3} bytes in UTF-8; at most {MAX_BYTES}" in problem["detail"]


@pytest.mark.parametrize("path", _PATHS)
async def test_a_body_announced_too_large_is_refused(client: httpx.AsyncClient, path: str) -> None:
    response = await _post(client, b" " * (MAX_BODY_BYTES + 1), path)
    assert "Content-Length" in response.request.headers
    assert_problem(response, 413, "body-too-large")


@pytest.mark.parametrize("path", _PATHS)
async def test_a_body_that_grows_too_large_is_refused(client: httpx.AsyncClient, path: str) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1_000
            yield b" " * 1_000

    response = await client.post(path, content=chunks(), headers=_JSON)
    assert "Content-Length" not in response.request.headers
    assert_problem(response, 413, "body-too-large")
    assert sent <= MAX_BODY_BYTES + 1_000


async def test_a_body_of_just_the_size_allowed_is_read(client: httpx.AsyncClient) -> None:
    body = '{"text": "好"}'.encode()
    assert (await _post(client, body + b" " * (MAX_BODY_BYTES - len(body)))).status_code == 200


_MALFORMED = {
    "words": b"hello",
    "truncated": '{"text": "好'.encode(),
    "two values": b"{} {}",
    "trailing comma": b'{"text": "a",}',
    "raw NUL": b'{"text": "a\0"}',
    "raw line break": b'{"text": "a\n"}',
    "invalid UTF-8": b'{"text": "\xff\xfe"}',
    "cut-off UTF-8": b'{"text": "\xe5\xa5"}',
    "GBK": '{"text": "很好"}'.encode("gbk"),
    "deeply nested list": b"[" * 15_000,
    "deeply nested text": b'{"text": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "huge integer": b'{"text": ' + b"9" * 5_000 + b"}",
    "form": b"text=a",
}


@pytest.mark.parametrize("body", _MALFORMED.values(), ids=_MALFORMED)
@pytest.mark.parametrize("path", _PATHS)
async def test_a_body_that_is_not_json_is_refused(client: httpx.AsyncClient, body: bytes, path: str) -> None:
    assert_problem(await _post(client, body, path), 400, "not-json")


@pytest.mark.parametrize("text", ["1e400", "-1e400", "123456789012345678901234567890", "NaN", "Infinity"])
async def test_an_odd_number_is_no_text(client: httpx.AsyncClient, text: str) -> None:
    response = await _post(client, f'{{"text": {text}}}')
    assert response.status_code in {400, 422}
    assert_problem(response, response.status_code, {400: "not-json", 422: "invalid-request"}[response.status_code])


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/xml", "json", "multipart/form-data"])
@pytest.mark.parametrize("path", _PATHS)
async def test_a_body_that_does_not_call_itself_json_is_refused(
    client: httpx.AsyncClient, content_type: str | None, path: str
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await client.post(path, content=b'{"text": "a"}', headers=headers)
    assert_problem(response, 415, "not-json-type")


@pytest.mark.parametrize("text", [rb"a\ud83d", rb"\udc4da", rb"\udc4d\ud83d", b"\xed\xa0\x80"])
async def test_half_a_surrogate_pair_is_refused(client: httpx.AsyncClient, text: bytes) -> None:
    problem = assert_problem(await _post(client, b'{"text": "' + text + b'"}'), 422, "invalid-text")
    assert pointers(problem) == ["#/text"]


async def test_half_a_surrogate_pair_in_the_name_of_a_field_is_refused(client: httpx.AsyncClient) -> None:
    assert_problem(await _post(client, r'{"text": "好", "\ud83d": 1}'), 422, "invalid-request")


async def test_a_whole_surrogate_pair_is_one_character(client: httpx.AsyncClient) -> None:
    assert (await _post(client, r'{"text": "好\ud83d\udc4d"}')).status_code == 200


@pytest.mark.parametrize("text", [r"好\u0000", r"\u0007好", r"好\u001b[31m"])
async def test_control_characters_are_refused(client: httpx.AsyncClient, text: str) -> None:
    problem = assert_problem(await _post(client, f'{{"text": "{text}"}}'), 422, "invalid-text")
    assert pointers(problem) == ["#/text"]


@pytest.mark.parametrize("path", ["/v1", "/v1/sentiments", "/v1/sentiment/batch/1", "/%E5%A5%BD", "/../etc"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_unknown_address_is_a_problem(client: httpx.AsyncClient, method: str, path: str) -> None:
    assert_problem(await client.request(method, path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/sentiment", "POST"),
        ("PUT", "/v1/sentiment", "POST"),
        ("DELETE", "/v1/sentiment/batch", "POST"),
        ("OPTIONS", "/v1/sentiment", "POST"),
        ("POST", "/health/live", "GET"),
        ("POST", "/health/ready", "GET"),
        ("POST", "/metrics", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)
    problem = assert_problem(response, 405, "method-not-allowed")
    assert response.headers["Allow"] == allowed
    assert allowed in problem["detail"]


_PRIVATE = "我住在槐花巷"


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"text": _PRIVATE * 100}),
        json.dumps({"text": _PRIVATE + "\0"}),
        json.dumps({"text": [_PRIVATE]}),
        json.dumps({"texts": _PRIVATE}),
        json.dumps([_PRIVATE]),
        json.dumps(_PRIVATE),
        json.dumps({"text": _PRIVATE})[:-1],
        json.dumps({"text": _PRIVATE}, ensure_ascii=False)[:-1],
        f'{{"text": {_PRIVATE}}}',
        f'{{"text": "{_PRIVATE}\\ud800"}}',
        f'{{"text": "{_PRIVATE}"}} {_PRIVATE}',
    ],
)
@pytest.mark.parametrize("path", _PATHS)
async def test_a_problem_never_repeats_the_text(client: httpx.AsyncClient, content: str, path: str) -> None:
    response = await _post(client, content, path)
    assert response.status_code in {400, 422}
    for shown in (response.text, json.dumps(response.json(), ensure_ascii=False), str(response.headers)):
        assert not any(_PRIVATE[start : start + 2] in shown for start in range(len(_PRIVATE) - 1))
        assert json.dumps(_PRIVATE[:2]).strip('"') not in shown


async def test_an_object_of_countless_fields_is_told_so_in_one_line(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/sentiment", json={f"{number}": 0 for number in range(1_000)})
    assert_problem(response, 422, "invalid-request")
    assert len(response.json()["errors"]) == 1


async def test_an_address_with_a_slash_too_many_is_unknown(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/v1/sentiment/", json={"text": "好"}), 404, "not-found")


async def test_no_route_documents_an_error_that_is_no_problem(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "HTTPValidationError" not in json.dumps(document)
