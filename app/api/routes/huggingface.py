"""What Hugging Face's InferenceClient asks of an endpoint of its own: a POST to the base address."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, RootModel

from app.api.answering import answer_all
from app.api.dependencies import ServicesDependency
from app.api.dialects import Translate
from app.api.lean import LeanRoute
from app.api.routes.tei import ERRORS, Prediction, ranked, require_few, translate
from app.api.schemas import saying


class ClassificationParameters(BaseModel):
    """How to answer."""

    model_config = ConfigDict(strict=True)

    function_to_apply: Literal["softmax", "none"] | None = Field(
        default=None, description="`none` answers with logarithms of probabilities"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Only so many labels")


class ClassificationRequest(BaseModel):
    """What to classify; fields that are not known are ignored."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"inputs": "太好吃了", "parameters": {"top_k": 1}}]}
    )

    inputs: Annotated[
        str | list[str], saying("A text or a list of texts is expected."), Field(description="A text, or many")
    ]
    parameters: ClassificationParameters | None = None


class ClassificationResponse(RootModel[list[list[Prediction]]]):
    """For each text every label, the most probable first."""


router = APIRouter(tags=["Hugging Face"], route_class=LeanRoute)


@router.post("/", summary="Classify, for Hugging Face's InferenceClient", responses=ERRORS)
async def classify(
    request: Request, body: ClassificationRequest, services: ServicesDependency
) -> ClassificationResponse:
    """Answer with the most probable labels and their scores."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    require_few(len(texts), services.max_texts)
    parameters = body.parameters or ClassificationParameters()
    _, classified = await answer_all(request, services, texts)
    return ClassificationResponse(
        [ranked(each, raw=parameters.function_to_apply == "none")[: parameters.top_k] for each in classified]
    )


DIALECT: Final[Mapping[str, Translate]] = {"": translate}
