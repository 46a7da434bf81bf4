"""The HTTP interface without Ray: routes and problems, with a real detector behind them."""

import asyncio
import base64

import numpy as np
import pytest

from blades_dist import __version__
from blades_dist.data.records import REASONS
from blades_dist.detect.inspect import inspect_files
from blades_dist.serving.problems import STATUS_OF_REASON
from blades_dist.testing.service import check_problem, client_of, encoded, noise, small_config


def run(detector, work, **options):
    """The result of a coroutine over a client."""

    async def whole():
        async with client_of(detector, **options) as client:
            return await work(client)

    return asyncio.run(whole())


def base(data):
    return base64.b64encode(data).decode()


def test_form_raw_body_and_json_answer_like_predict(detector, photo):
    ((_, expected),) = inspect_files(detector, [photo], 500_000, 300_000)
    data = photo.read_bytes()

    async def work(client):
        return [
            await client.post("/v1/detect", files={"file": ("x.jpg", data, "image/jpeg")}),
            await client.post("/v1/detect", content=data, headers={"content-type": "image/jpeg"}),
            await client.post("/v1/detect", content=data),
            await client.post("/v1/detect", json={"image": base(data)}),
            await client.post("/v1/detect?model=default", content=data),
        ]

    for answer in run(detector, work):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        timings, name = body.pop("timings"), body.pop("request_id")
        assert body == expected.model_dump(mode="json")
        assert 0 < timings["score"] <= timings["total"] and name == answer.headers["x-request-id"]


def test_parameters(detector, photo):
    data = photo.read_bytes()

    async def work(client):
        body = (await client.post("/v1/detect?fpr=0.2&faces=crop", content=data)).json()
        assert body["faces"][0]["fpr"] == 0.2 and body["faces_from"] == "whole image"
        for query in ("fpr=0", "fpr=1", "fpr=x", "faces=none", "fpr=nan", "fpr=0.0001"):
            check_problem(await client.post(f"/v1/detect?{query}", content=data), 400, "bad_parameter")
        check_problem(await client.post("/v1/detect?model=other", content=data), 404, "no_model")

    run(detector, work)


def test_images_that_cannot_be_judged(detector, photo):
    data = photo.read_bytes()

    async def work(client):
        for content, status, reason in (
            (b"", 400, "empty"),
            (b"no picture", 400, "unreadable"),
            (data[: len(data) // 2], 400, "truncated"),
            (encoded((900, 900)), 413, "too_large"),
            (encoded((200, 200), "GIF"), 415, "unsupported"),
            (encoded((200, 200)), 422, "no_face"),
        ):
            check_problem(await client.post("/v1/detect", content=content), status, reason)
            check_problem(await client.post("/v1/detect", json={"image": base(content)}), status, reason)
            if content:
                check_problem(await client.post("/v1/detect", files={"file": ("x", content)}), status, reason)
        check_problem(await client.post("/v1/detect?faces=crop", content=noise(1, 40)), 422, "face_too_small")

    run(detector, work)


def test_bodies_that_cannot_be_read(detector):
    async def work(client):
        check_problem(await client.post("/v1/detect", files={"other": ("x", b"y")}), 400, "no_file")
        form = await client.post("/v1/detect", data={"file": "text"}, files={"other": b"y"})
        check_problem(form, 400, "no_file")
        for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
            answer = await client.post("/v1/detect", content=b"--y garbage", headers={"content-type": kind})
            check_problem(answer, 400, "bad_request")
        for body in (b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"image": 3}', b'{"image": "%%"}', b"{}"):
            answer = await client.post("/v1/detect", content=body, headers={"content-type": "application/json"})
            check_problem(answer, 400, "bad_body")
        check_problem(await client.get("/v1/detect"), 405, "bad_method")
        check_problem(await client.get("/nothing"), 404, "not_found")
        check_problem(await client.post("/v1/detect/", content=b"x"), 404, "not_found")

    run(detector, work)


def test_a_batch_has_a_result_or_a_problem_an_image(detector, photo):
    ((_, expected),) = inspect_files(detector, [photo], 500_000, 300_000)
    data = photo.read_bytes()

    async def work(client):
        files = [("file", ("a.jpg", data)), ("file", ("b.png", encoded((200, 200)))), ("file", ("c", b"x"))]
        form = await client.post("/v1/detect/batch", files=files)
        images = [base(content) for content in (data, encoded((200, 200)), b"x")]
        document = await client.post("/v1/detect/batch", json={"images": images})
        for answer, names in ((form, ["a.jpg", "b.png", "c"]), (document, [None] * 3)):
            assert answer.status_code == 200, answer.text
            results = answer.json()["results"]
            assert [item["filename"] for item in results] == names and [i["index"] for i in results] == [0, 1, 2]
            image = results[0]["image"]
            image.pop("timings")
            assert image == expected.model_dump(mode="json") and results[0]["problem"] is None
            assert [item["problem"]["reason"] for item in results[1:]] == ["no_face", "unreadable"]
        check_problem(await client.post("/v1/detect/batch", json={"images": []}), 400, "no_file")
        check_problem(await client.post("/v1/detect/batch", json={"images": ["AA"] * 2}), 400, "bad_body")
        check_problem(await client.post("/v1/detect/batch", json={"images": ["AAAA"] * 5}), 413, "too_many")
        check_problem(await client.post("/v1/detect/batch", files=[("file", b"x")] * 5), 413, "too_many")
        check_problem(await client.post("/v1/detect/batch", files=[("file", b"x")] * 50), 400, "bad_request")
        check_problem(await client.post("/v1/detect/batch", content=data), 415, "bad_type")

    run(detector, work)


def test_an_answer_that_takes_too_long(detector, photo):
    async def work(client):
        check_problem(await client.post("/v1/detect", content=photo.read_bytes()), 504, "deadline")
        batch = await client.post("/v1/detect/batch", files=[("file", photo.read_bytes())])
        assert batch.json()["results"][0]["problem"]["status"] == 504

    run(detector, work, config=small_config(deadline_seconds=0.05), hold=asyncio.Event())


def test_models_and_health(detector):
    async def work(client):
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert model["detector"]["id"] == detector.id and model["calibration_faces"] == 119
        assert (model["name"], model["default"], model["unsure_fpr"]) == ("default", True, 0.1)
        histogram = model["histogram"]
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1 and sum(histogram["counts"]) == 119
        assert (np.diff(histogram["edges"]) > 0).all()
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/v2")).json() == {"name": "blades-dist", "version": __version__, "extensions": []}
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        assert (await client.get("/v2/models/default/ready")).json() == {"name": "default", "ready": True}
        check_problem(await client.get("/v2/models/other/ready"), 404, "no_model")

    run(detector, work)


def test_float_tensors(detector):
    crops = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    expected = detector.detect(crops, 0.2)
    tensor = {"name": "crops", "datatype": "UINT8", "shape": list(crops.shape), "data": crops.ravel().tolist()}

    async def work(client):
        metadata = (await client.get("/v2/models/default")).json()
        assert metadata["inputs"] == [{"name": "crops", "datatype": "UINT8", "shape": [-1, 3, 32, 32]}]
        assert metadata["versions"] == [detector.id]
        floats = {"datatype": "FP32", "data": (crops / np.float32(255)).ravel().tolist()}
        for change in ({}, {"data": crops.tolist()}, floats):
            document = {"id": "7", "parameters": {"fpr": 0.2}, "inputs": [tensor | change]}
            answer = (await client.post("/v2/models/default/infer", json=document)).json()
            outputs = {item["name"]: item["data"] for item in answer["outputs"]}
            assert outputs["score"] == [r.score for r in expected]
            assert outputs["p_value"] == [r.p_value for r in expected]
            assert outputs["flagged"] == [r.verdict == "ai_generated" for r in expected] and answer["id"] == "7"
        for change in (
            {"name": "x"},
            {"datatype": "FP16"},
            {"datatype": "FP32"},  # beyond 1
            {"shape": [3, 3, 32, 31]},
            {"data": tensor["data"][:-1]},
            {"data": [*tensor["data"][:-1], 256]},
            {"data": [*tensor["data"][:-1], 0.5]},
            {"data": [*tensor["data"][:-1], "x"]},
            {"data": [*tensor["data"][:-1], 10**400]},
            {"data": [*tensor["data"][:-1], None]},
            {"shape": [0, 3, 32, 32], "data": []},
        ):
            answer = await client.post("/v2/models/default/infer", json={"inputs": [tensor | change]})
            check_problem(answer, 400, "bad_tensor")
        large = {"inputs": [tensor | {"shape": [17, 3, 32, 32]}]}
        check_problem(await client.post("/v2/models/default/infer", json=large), 413, "too_many")
        for document in ({}, {"inputs": []}, {"inputs": [tensor | {"shape": [1]}]}, {"inputs": [3]}):
            check_problem(await client.post("/v2/models/default/infer", json=document), 400, "bad_body")
        check_problem(await client.post("/v2/models/other/infer", json={"inputs": [tensor]}), 404, "no_model")
        kind = {"content-type": "image/png"}
        check_problem(await client.post("/v2/models/default/infer", content=b"x", headers=kind), 415, "bad_type")

    run(detector, work)


def test_the_openapi_document_is_complete(detector):
    async def work(client):
        return (await client.get("/openapi.json")).json()

    document = run(detector, work)
    routes = {
        ("/v1/detect", "post"): {"200", "400", "401", "403", "404", "408", "413", "415", "422", "431", "503", "504"},
        ("/v1/detect/batch", "post"): {"200", "400", "413", "415", "503"},
        ("/v1/jobs", "post"): {"202", "400", "403", "413", "415", "429", "503"},
        ("/v1/jobs/{name}", "get"): {"200", "404"},
        ("/v1/jobs/{name}", "delete"): {"204", "404"},
        ("/v1/models", "get"): {"200", "503"},
        ("/healthz", "get"): {"200"},
        ("/v2/health/live", "get"): {"200"},
        ("/v2/health/ready", "get"): {"200", "503"},
        ("/v2", "get"): {"200", "401"},
        ("/v2/models/{name}/ready", "get"): {"200", "404"},
        ("/v2/models/{name}", "get"): {"200", "404"},
        ("/v2/models/{name}/infer", "post"): {"200", "400", "404", "413", "415", "504"},
    }
    assert {(path, method) for path, own in document["paths"].items() for method in own} == set(routes)
    for (path, method), statuses in routes.items():
        responses = document["paths"][path][method]["responses"]
        assert statuses <= set(responses), (path, statuses - set(responses))
        for status, response in responses.items():
            if status >= "4":
                reference = response["content"]["application/problem+json"]["schema"]["$ref"]
                assert reference == "#/components/schemas/Problem"
    schemas = document["components"]["schemas"]
    assert {"Problem", "InferRequest", "InputTensor", "DetectResponse"} <= set(schemas)
    text = str(document)
    assert all(f"/schemas/{name}'" not in text for name in ("HTTPValidationError", "ValidationError"))


def test_a_fault_of_ours_is_no_trace(detector, photo, monkeypatch):
    async def work(client):
        answer = await client.post("/v1/detect", content=photo.read_bytes())
        check_problem(answer, 500, "internal")
        assert "secret" not in answer.text and answer.headers["x-content-type-options"] == "nosniff"
        batch = await client.post("/v1/detect/batch", files=[("file", photo.read_bytes())])
        assert batch.json()["results"][0]["problem"]["status"] == 500 and "secret" not in batch.text

    def broken(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(type(detector), "detect", broken)
    run(detector, work)


def test_every_reason_of_one_image_has_a_status():
    assert set(REASONS) - set(STATUS_OF_REASON) == {"no_usable_tag", "duplicate", "near_duplicate"}  # of ingest


def test_the_page_and_its_files(detector):
    async def work(client):
        for path, kind in (("/", "text/html"), ("/page/app.js", "text/javascript"), ("/page/style.css", "text/css")):
            answer = await client.get(path)
            assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
            assert "script-src 'self'" in answer.headers["content-security-policy"]
        words = await client.get("/page/tags.js")
        assert words.headers["content-type"].startswith("text/javascript") and '"iso": "ISO speed"' in words.text

    run(detector, work)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/page/../api.py", "/page/none.js"])
def test_nothing_else_is_served(detector, path):
    async def work(client):
        return await client.get(path)

    check_problem(run(detector, work), 404, "not_found")
