"""The HTTP interface on requests nobody would send: what Schemathesis makes of the OpenAPI document, and mutations.

``benchmarks/fuzz_service.py`` runs many more of the mutations.
"""

import asyncio
import random
import threading
import time

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from blades_dist.serving.api import make_api
from blades_dist.serving.decoding import DecodeProcess
from blades_dist.serving.middleware import Tokens
from blades_dist.testing.fuzz_cases import Bounded, Cases, exchange, fuzz_config

EXAMPLES = 15  # of an operation


@pytest.fixture(scope="module")
def process():
    config = fuzz_config()
    bounds = config.max_pixels, config.max_bytes, config.decode_seconds, config.decode_mebibytes
    with DecodeProcess(*bounds) as opened:
        yield opened


@pytest.fixture(scope="module")
def api_schema(detector, process):
    """Of the API behind a real server on loopback."""
    config = fuzz_config()
    app = make_api(Bounded(detector, config, process), config, Tokens([]))
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_what_the_openapi_document_promises(api_schema, mode):
    for found in api_schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or list(operation.iter_parameters())):
            continue  # there is nothing to get wrong

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def hold(case):
            # A body of the right shape may still hold no picture: 400 and 422 are right then.
            case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])

        hold()


def test_mutated_pictures_and_bodies(detector, process, photos):
    config, statuses = fuzz_config(), {}
    cases = Cases([photo.read_bytes() for photo in photos[:3]])

    async def work():
        app = make_api(Bounded(detector, config, process), config, Tokens([]))
        for seed in range(400):
            status = await exchange(app, cases.case(seed), random.Random(seed))
            statuses[status] = statuses.get(status, 0) + 1

    asyncio.run(work())
    assert set(statuses) >= {200, 400, 403, 404, 413, 415, 422, 431}, statuses
