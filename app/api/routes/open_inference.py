"""The Open Inference Protocol, version 2, as REST: one input of texts, and tensors out.

With Triton's extension for tensors in binary, which NVIDIA's client uses unless told otherwise.
"""

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field

from app.api.answering import answer_all
from app.api.dependencies import ServicesDependency
from app.api.dialects import Translate, sentence_of
from app.api.lean import parse
from app.api.problems import Problem
from app.api.routes import operations
from app.api.schemas import saying
from app.domain.errors import InvalidHeader, UnknownModel
from app.inference.bundle import Manifest
from app.inference.classifier import Classified
from app.inference.served import ServedModel
from app.services import Services

_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_LENGTH: Final = struct.Struct("<I")  # before each element of binary BYTES
_TEXT: Final = "text"
_LABEL: Final = "label"
_PROBABILITIES: Final = "probabilities"

_Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class ServerMetadata(BaseModel):
    """What serves, and what it can do beside the protocol."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether the process works."""

    live: bool


class Ready(BaseModel):
    """Whether requests should be sent here."""

    ready: bool


class ModelReady(Ready):
    """Whether a model answers."""

    name: str


class TensorMetadata(BaseModel):
    """A tensor that goes in or comes out; -1 is the number of texts."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str] | None = None


class ModelMetadata(BaseModel):
    """A model and its tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputParameters(_Strict):
    """How an input travels."""

    binary_data_size: _Size | None = Field(default=None, description="Bytes of it that follow the JSON")


class InputTensor(_Strict):
    """The texts."""

    name: Literal["text"]
    shape: Annotated[list[_Size], Field(min_length=1, max_length=2, description="[N] or [N, 1]")]
    datatype: Literal["BYTES"]
    parameters: InputParameters = InputParameters()
    data: Annotated[
        list[str] | list[Annotated[list[str], Field(min_length=1, max_length=1)]] | None,
        saying("A list of texts is expected, or a list of lists of one text each."),
        Field(description="The texts, unless they follow in binary"),
    ] = None


class OutputParameters(_Strict):
    """How an output is to travel."""

    model_config = ConfigDict(extra="forbid")

    binary_data: bool | None = None


class RequestedOutput(_Strict):
    """An output that is asked for."""

    name: Literal["label", "probabilities"]
    parameters: OutputParameters = OutputParameters()


class RequestParameters(_Strict):
    """How all outputs are to travel that do not say so themselves; others are ignored."""

    binary_data_output: bool = False


class InferRequest(_Strict):
    """Texts, and which outputs to return."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["太好吃了", "等了两个小时"]}]}
            ]
        }
    )

    id: Annotated[str, Field(max_length=256)] | None = Field(default=None, description="Returned as it is")
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=2)] | None = Field(
        default=None, description="Without any: all"
    )


_ALL: Final = (RequestedOutput(name="label"), RequestedOutput(name="probabilities"))


class OutputTensor(BaseModel):
    """An output."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[str] | list[float] | None = None


class InferResponse(BaseModel):
    """The outputs, and which model gave them."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class InferError(BaseModel):
    """Why a request failed."""

    error: str


router = APIRouter(
    prefix="/v2",
    tags=["Open Inference Protocol"],
    responses={"default": {"model": InferError, "description": "Why it failed"}},
)


@router.get("", summary="What serves")
async def server(request: Request) -> ServerMetadata:
    """Answer with name, version and extensions."""
    return ServerMetadata(name="chinese-sentiment", version=request.app.version, extensions=["binary_tensor_data"])


@router.get("/health/live", summary="Is the process alive?", responses={503: {"model": Live}})
async def live(services: ServicesDependency, response: Response) -> Live:
    """Answer as /health/live does."""
    await operations.live(services, response)
    return Live(live=response.status_code is None)


@router.get("/health/ready", summary="Should requests be sent here?", responses={503: {"model": Ready}})
async def ready(request: Request, services: ServicesDependency, response: Response) -> Ready:
    """Answer as /health/ready does."""
    readiness = await operations.ready(request, services, response)
    return Ready(ready=readiness.reason is None)


async def metadata(request: Request, services: ServicesDependency) -> ModelMetadata:
    """Answer with the model's tensors; the columns of the probabilities are in the order of `labels`."""
    manifest = _model(request, services).manifest
    labels = ",".join(manifest.labels)
    return ModelMetadata(
        name=manifest.name,
        versions=[manifest.version],
        platform="onnxruntime_onnx",
        inputs=[TensorMetadata(name=_TEXT, datatype="BYTES", shape=[-1])],
        outputs=[
            TensorMetadata(name=_LABEL, datatype="BYTES", shape=[-1]),
            TensorMetadata(
                name=_PROBABILITIES,
                datatype="FP32",
                shape=[-1, len(manifest.labels)],
                parameters={"labels": labels},
            ),
        ],
    )


async def model_ready(request: Request, services: ServicesDependency, response: Response) -> ModelReady:
    """Answer 200 when the model is known to answer rightly."""
    model = _model(request, services)
    reason = await model.reason_not_ready()
    if reason is not None:
        response.status_code = 503
    return ModelReady(name=model.manifest.name, ready=reason is None)


async def infer(request: Request, services: ServicesDependency) -> Response:
    """Answer with the label of each text and the probabilities of all labels.

    Tensors travel as JSON or, after it, in binary.
    """
    head, tail = _split(await request.body(), request.headers.get(_HEADER_LENGTH))
    named = _model(request, services).manifest
    asked = parse(InferRequest, head)
    texts = _texts(asked.inputs[0], tail, services.max_texts)
    lease = services.models.lease_of(named.name, named.version) if "version" in request.path_params else None
    manifest, classified = await answer_all(request, services, texts, lease)
    return _respond(asked, manifest, classified)


_NAME: Final = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION: Final = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
_BODY: Final = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}
for _path, _parameters in (("/models/{name}", [_NAME]), ("/models/{name}/versions/{version}", [_NAME, _VERSION])):
    _extra = {"parameters": _parameters}
    router.add_api_route(
        _path, metadata, summary="The model's tensors", openapi_extra=_extra, response_model_exclude_none=True
    )
    router.add_api_route(
        f"{_path}/ready",
        model_ready,
        summary="Does the model answer?",
        openapi_extra=_extra,
        responses={503: {"model": ModelReady}},
    )
    router.add_api_route(
        f"{_path}/infer",
        infer,
        methods=["POST"],
        summary="Classify texts",
        openapi_extra={**_extra, "requestBody": _BODY},
        responses={200: {"model": InferResponse, "content": {"application/octet-stream": {}}}},
    )


def _model(request: Request, services: Services) -> ServedModel:
    """Return the model that the address names."""
    name, version = request.path_params["name"], request.path_params.get("version")
    active = services.models.active
    if version is None and name == active.manifest.name:
        return active
    for model in (active, services.models.candidate):
        if model is not None and (model.manifest.name, model.manifest.version) == (name, version):
            return model
    raise UnknownModel(f"No such model is served here; {active.manifest.name}, version {active.manifest.version}, is.")


def _split(content: bytes, said: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and what follows it."""
    if said is None:
        return content, b""
    if not (said.isascii() and said.isdecimal() and len(said) < 10 and int(said) <= len(content)):
        raise InvalidHeader(f"{_HEADER_LENGTH} must be the number of bytes of the JSON in the body.")
    return content[: int(said)], content[int(said) :]


def _texts(tensor: InputTensor, tail: bytes, most: int) -> list[str]:
    """Return the texts of an input, whether in JSON or, after it, in binary."""
    count = prod(tensor.shape)
    if tensor.shape[1:] not in ([], [1]):
        raise _invalid("shape", "One text a row is expected: [N] or [N, 1].")
    if count > most:
        raise _invalid("shape", f"{count} texts were sent, at most {most} are accepted.")
    size = tensor.parameters.binary_data_size
    if (size or 0) != len(tail):
        raise _invalid("parameters/binary_data_size", f"{len(tail)} bytes follow the JSON.")
    if (tensor.data is None) == (size is None):
        raise _invalid("data", "The texts are expected either here or, in binary, after the JSON.")
    rows = _from_binary(tail, count) if tensor.data is None else tensor.data
    texts = [text for row in rows for text in ([row] if isinstance(row, str) else row)]
    if len(texts) != count:
        raise _invalid("data", f"By its shape {count} texts are expected, {len(texts)} were sent.")
    return texts


def _from_binary(content: bytes, most: int) -> list[str]:
    texts: list[str] = []
    place = 0
    try:
        while place < len(content) and len(texts) <= most:
            (length,) = _LENGTH.unpack_from(content, place)
            (text,) = struct.unpack_from(f"<{length}s", content, place + _LENGTH.size)
            texts.append(text.decode())
            place += _LENGTH.size + length
    except struct.error:
        raise _invalid("data", f"Text {len(texts)} ends after the tensor does.") from None
    except UnicodeDecodeError:
        raise _invalid("data", f"Text {len(texts)} is not UTF-8.") from None
    return texts


def _invalid(where: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "tensor", "loc": ("body", "inputs", 0, *where.split("/")), "msg": message}])


def _respond(asked: InferRequest, manifest: Manifest, classified: Sequence[Classified]) -> Response:
    tensors = {
        _LABEL: OutputTensor(
            name=_LABEL,
            datatype="BYTES",
            shape=asked.inputs[0].shape,
            data=[each.sentiment.label for each in classified],
        ),
        _PROBABILITIES: OutputTensor(
            name=_PROBABILITIES,
            datatype="FP32",
            shape=[len(classified), len(manifest.labels)],
            data=[share for each in classified for share in each.sentiment.probabilities.values()],
        ),
    }
    outputs, binaries = [], []
    for output in asked.outputs or _ALL:
        tensor = tensors[output.name]
        in_binary = output.parameters.binary_data
        if asked.parameters.binary_data_output if in_binary is None else in_binary:
            binaries.append(_to_binary(tensor.data or []))
            tensor = tensor.model_copy(update={"data": None, "parameters": {"binary_data_size": len(binaries[-1])}})
        outputs.append(tensor)
    response = InferResponse(model_name=manifest.name, model_version=manifest.version, id=asked.id, outputs=outputs)
    head = response.model_dump_json(exclude_none=True).encode()
    if not binaries:
        return Response(head, media_type="application/json")
    return Response(
        b"".join((head, *binaries)),
        headers={_HEADER_LENGTH: str(len(head))},
        media_type="application/octet-stream",
    )


def _to_binary(data: Sequence[str] | Sequence[float]) -> bytes:
    parts = []
    for item in data:
        content = item.encode() if isinstance(item, str) else struct.pack("<f", item)
        parts += [_LENGTH.pack(len(content)), content] if isinstance(item, str) else [content]
    return b"".join(parts)


def translate(problem: Problem) -> tuple[int, InferError]:
    """Tell `problem` as the protocol does: what is wrong with a request is a 400."""
    return 400 if problem.status == 422 else problem.status, InferError(error=sentence_of(problem))


DIALECT: Final[Mapping[str, Translate]] = {"v2": translate}
