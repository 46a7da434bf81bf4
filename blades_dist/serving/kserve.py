"""KServe's V2 inference protocol over JSON, for clients that cut faces out themselves."""

import asyncio
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field, ValidationError

import blades_dist
from blades_dist.serving.backend import Backend, DetectOptions
from blades_dist.serving.bodies import json_object
from blades_dist.serving.problems import Refused, documented
from blades_dist.serving.schema import (
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    OutputTensor,
    Ready,
    ServerMetadata,
    TensorInfo,
)

# By datatype: NumPy's, and the largest value.
_DTYPES: dict[str, tuple[type[np.generic], int]] = {"UINT8": (np.uint8, 255), "FP32": (np.float32, 1)}
OUTPUTS = [
    TensorInfo(name=name, datatype=kind, shape=[-1])
    for name, kind in (("score", "FP64"), ("p_value", "FP64"), ("flagged", "BOOL"))
]
ModelName = Annotated[str, Path(max_length=64, description="a name of GET /v1/models")]


class InputTensor(BaseModel):
    """``data`` may be flat or nested."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(min_length=4, max_length=4)
    datatype: str
    data: list[Any]


class InferParameters(BaseModel):
    fpr: float | None = Field(None, gt=0, lt=1)


class InferRequest(BaseModel):
    """One input tensor ``crops`` (n, 3, S, S): UINT8, or FP32 in 0..1. What the model's metadata does not name is
    converted: 255 of UINT8 are 1.0 of FP32, and numbers are rounded to the nearest."""

    id: str | None = Field(None, max_length=128)
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
    }
}


def make_router(backend: Backend, most: int, deadline: float) -> APIRouter:
    """The V2 routes; ``most`` crops a request."""
    router = APIRouter(prefix="/v2", tags=["KServe V2"])

    @router.get("", responses=documented(401), summary="What answers here")
    async def server() -> ServerMetadata:
        return ServerMetadata(version=blades_dist.__version__)

    @router.get("/health/live", summary="Whether the process answers")
    async def live() -> Live:
        return Live()

    @router.get("/health/ready", responses=documented(503), summary="Whether every model answers")
    async def ready() -> Ready:
        await backend.models()
        return Ready()

    @router.get("/models/{name}/ready", responses=documented(401, 404, 503), summary="Whether a model answers")
    async def model_ready(name: ModelName) -> ModelReady:
        await backend.input_of(name)
        return ModelReady(name=name)

    @router.get("/models/{name}", responses=documented(401, 404, 503), summary="What a model takes and gives")
    async def metadata(name: ModelName) -> ModelMetadata:
        info, tensor = await backend.input_of(name)
        return ModelMetadata(name=name, versions=[info.detector.id], inputs=[tensor], outputs=OUTPUTS)

    @router.post(
        "/models/{name}/infer",
        responses=documented(400, 401, 404, 408, 413, 415, 503, 504),
        openapi_extra=_BODY,
        summary="Scores of faces that are cut out already",
    )
    async def infer(name: ModelName, request: Request) -> InferResponse:
        _, tensor = await backend.input_of(name)
        asked = _validated(await json_object(request))
        crops = await asyncio.to_thread(_crops, asked.inputs[0], tensor, most)
        options = DetectOptions(name, asked.parameters.fpr, request_id=request.scope.get("request_id", ""))
        try:
            async with asyncio.timeout(deadline):
                found = await backend.infer(crops, options)
        except TimeoutError:
            raise Refused(504, "deadline", f"there was no answer within {deadline:g} s") from None
        values = {"score": found.scores, "p_value": found.p_values, "flagged": found.flagged}
        outputs = [
            OutputTensor(name=out.name, datatype=out.datatype, shape=[len(crops)], data=values[out.name])
            for out in OUTPUTS
        ]
        return InferResponse(model_name=name, model_version=found.detector, id=asked.id, outputs=outputs)

    return router


def input_tensor(size: int, floats: bool) -> TensorInfo:
    """What an encoder of ``size`` pixels a side takes; ``floats`` are in 0..1."""
    return TensorInfo(name="crops", datatype="FP32" if floats else "UINT8", shape=[-1, 3, size, size])


def fits(crops: np.ndarray, tensor: TensorInfo) -> bool:
    """Whether these crops are what a model takes."""
    return list(crops.shape[1:]) == tensor.shape[1:] and crops.dtype == _DTYPES[tensor.datatype][0]


def _validated(document: dict[str, Any]) -> InferRequest:
    try:
        return InferRequest.model_validate(document)
    except ValidationError as error:
        item = error.errors()[0]
        raise Refused(400, "bad_body", f"{'.'.join(map(str, item['loc']))}: {item['msg']}") from None


def _crops(given: InputTensor, expected: TensorInfo, most: int) -> np.ndarray:
    """(n, 3, S, S) of the expected type.

    Raises:
        Refused: 400 ``bad_tensor``, 413 ``too_many``.
    """
    fits = given.name == expected.name and given.datatype in _DTYPES and given.shape[1:] == expected.shape[1:]
    if not fits:
        told = f"{expected.name} {' or '.join(_DTYPES)} {expected.shape}"
        raise Refused(400, "bad_tensor", f"expected {told}, got {given.name[:32]} {given.datatype[:32]} {given.shape}")
    if given.shape[0] > most:
        raise Refused(413, "too_many", f"{given.shape[0]} crops; the limit is {most}")
    try:
        values = np.asarray(given.data, np.float64).reshape(-1)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise Refused(400, "bad_tensor", "data is not an array of numbers") from None
    if values.size != int(np.prod(given.shape)) or not values.size:
        raise Refused(400, "bad_tensor", f"data holds {values.size} numbers; the shape needs {np.prod(given.shape)}")
    highest = _DTYPES[given.datatype][1]
    if not ((values >= 0) & (values <= highest)).all():
        raise Refused(400, "bad_tensor", f"data must be from 0 to {highest}")
    if given.datatype == "UINT8" and (values != np.rint(values)).any():
        raise Refused(400, "bad_tensor", "data of UINT8 must be whole numbers")
    kind, scale = _DTYPES[expected.datatype]
    if given.datatype != expected.datatype:
        values = values * scale / highest
    return (np.rint(values) if kind is np.uint8 else values).astype(kind).reshape(given.shape)
