"""That the gRPC service is the one its clients know: messages as in their own files, grpc.health.v1, reflection."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessages
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from tritonclient.grpc import model_config_pb2, service_pb2

from tests.service.process import Server, serving

ROOT = Path(__file__).parents[2]
PROTOS = ("app/api/grpc/inference.proto", "app/api/grpc/health.proto")
SERVICE = "inference.GRPCInferenceService"
KSERVE_ONLY = {
    "RepositoryModelLoadResponse": {"model_name", "isLoaded"},
    "RepositoryModelUnloadResponse": {"model_name", "isUnloaded"},
}
"""Fields of kserve's messages that Triton's are without."""

Serving = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    """Our files, compiled now; their names would collide with the clients', so they are never registered here."""
    out = tmp_path_factory.mktemp("proto") / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--descriptor_set_out={out}", *PROTOS]
    subprocess.run(command, check=True, cwd=ROOT)
    files = list(FileDescriptorSet.FromString(out.read_bytes()).file)
    for file in files:
        for _, message in messages(*file.message_type):
            for field in message.field:
                field.ClearField("json_name")  # written here and not into modules
    return files


@pytest.fixture(scope="module")
def ours(compiled: list[FileDescriptorProto]) -> FileDescriptorProto:
    return compiled[0]


@pytest.fixture(scope="module")
def our_health(compiled: list[FileDescriptorProto]) -> FileDescriptorProto:
    return compiled[1]


@pytest.fixture(scope="module")
def theirs() -> tuple[FileDescriptorProto, FileDescriptorProto]:
    files = FileDescriptorProto(), FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(files[0])
    model_config_pb2.DESCRIPTOR.CopyToProto(files[1])
    return files


def messages(*found: DescriptorProto, prefix: str = "") -> Iterator[tuple[str, DescriptorProto]]:
    for message in found:
        name = f"{prefix}{message.name}"
        yield name, message
        yield from messages(*message.nested_type, prefix=f"{name}.")


def test_every_field_is_the_clients_own(ours: FileDescriptorProto, theirs: tuple[FileDescriptorProto, ...]):
    known = dict(messages(*(message for file in theirs for message in file.message_type)))
    for name, message in messages(*ours.message_type):
        their_fields = {
            field.name: (field.number, field.type, field.label, field.type_name) for field in known[name].field
        }
        for field in message.field:
            if field.name in KSERVE_ONLY.get(name, ()):
                continue
            assert their_fields[field.name] == (field.number, field.type, field.label, field.type_name), name
    enums = {enum.name: enum for enum in theirs[1].enum_type}
    for enum in ours.enum_type:
        assert list(enum.value) == list(enums[enum.name].value)


def test_every_method_is_the_clients_own(ours: FileDescriptorProto, theirs: tuple[FileDescriptorProto, ...]):
    known = {method.name: (method.input_type, method.output_type) for method in theirs[0].service[0].method}
    assert (ours.package, ours.service[0].name) == ("inference", "GRPCInferenceService")
    for method in ours.service[0].method:
        assert known[method.name] == (method.input_type, method.output_type)
    missing = known.keys() - {method.name for method in ours.service[0].method}
    assert all(any(word in name for word in ("SharedMemory", "Stream", "Trace", "Log")) for name in missing), missing


def test_health_is_the_standard_one(our_health: FileDescriptorProto):
    """As in grpcio's own package, which lacks only List in some releases."""
    standard = FileDescriptorProto()
    health_pb2.DESCRIPTOR.CopyToProto(standard)
    mine = dict(messages(*our_health.message_type))
    for name, message in messages(*standard.message_type):
        assert mine[name] == message
    methods = {method.name: method for method in our_health.service[0].method}
    assert (our_health.package, our_health.service[0].name) == (standard.package, standard.service[0].name)
    for theirs in standard.service[0].method:
        own = methods[theirs.name]
        assert (own.input_type, own.output_type) == (theirs.input_type, theirs.output_type)
        assert own.server_streaming == theirs.server_streaming


def test_compiled_modules_are_up_to_date(compiled: list[FileDescriptorProto]):
    """In a process of their own; every method of inference.proto has an implementation, and none beside them."""
    code = (
        "import sys; from app.api.grpc import health_pb2, inference_pb2 as pb, methods;"
        "assert set(methods.METHODS) == set(pb.DESCRIPTOR.services_by_name['GRPCInferenceService'].methods_by_name);"
        "from google.protobuf.descriptor_pb2 import FileDescriptorSet as Set, FileDescriptorProto as File;"
        "files = [File.FromString(module.DESCRIPTOR.serialized_pb) for module in (pb, health_pb2)];"
        "sys.stdout.buffer.write(Set(file=files).SerializeToString())"
    )
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT).stdout
    assert list(FileDescriptorSet.FromString(modules).file) == compiled


@pytest_asyncio.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


async def test_health(channel: grpc.aio.Channel, our_health: FileDescriptorProto):
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == Serving.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    listing = GetMessages([our_health], pool=DescriptorPool())["grpc.health.v1.HealthListResponse"]
    listed = listing.FromString(await channel.unary_unary("/grpc.health.v1.Health/List")(b"")).statuses
    assert {name: response.status for name, response in listed.items()} == dict.fromkeys(("", SERVICE), Serving.SERVING)
    async for response in stub.Watch(health_pb2.HealthCheckRequest(service="nope")):
        assert response.status == Serving.SERVICE_UNKNOWN
        break


async def test_core_knows_what_it_is_asked_for(channel: grpc.aio.Channel, server: Server):
    """GRPC_EXPERIMENTS names what this release of grpcio has; its core complains of others in the log."""
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert "experiment" not in server.log.read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_core_reads_without_threads_of_its_own(server: Server):
    """Which with its default wake about three times for each call."""
    calls = 200
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        live = server_live(channel)
        before = core_wakes(server.process.pid)
        for _ in range(calls):
            live(service_pb2.ServerLiveRequest())
    assert core_wakes(server.process.pid) - before < calls


def server_live(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """The method as that channel calls it."""
    return channel.unary_unary(
        f"/{SERVICE}/ServerLive",
        service_pb2.ServerLiveRequest.SerializeToString,
        service_pb2.ServerLiveResponse.FromString,
    )


def core_wakes(process: int) -> int:
    """How often the threads of gRPC's core have waited for something so far."""
    threads = []
    for status in Path(f"/proc/{process}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            threads.append(status.read_text())
    found = [
        re.search(r"^Name:\tevent_engine$.*^voluntary_ctxt_switches:\t(\d+)$", text, re.M | re.S) for text in threads
    ]
    waits = [int(match.group(1)) for match in found if match]
    assert waits
    return sum(waits)


async def test_watch_tells_of_the_leave_and_ends(mixed_repository: Path, tmp_path: Path):
    """Not serving from the signal on, while calls are still accepted; an open watch does not hold the server up."""
    with serving(mixed_repository, tmp_path / "log", "--shutdown-delay", "2") as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            seen = []
            async for response in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
                seen.append(response.status)
                if response.status == Serving.SERVING:
                    server.process.terminate()
                else:
                    assert (await server_live(channel)(service_pb2.ServerLiveRequest())).live
        assert seen == [Serving.SERVING, Serving.NOT_SERVING]
        assert await asyncio.to_thread(server.process.wait, 20) == 0


async def test_reflection_lists_and_describes(channel: grpc.aio.Channel, ours: FileDescriptorProto):
    requests = [ServerReflectionRequest(list_services=""), ServerReflectionRequest(file_containing_symbol=SERVICE)]
    answers = [answer async for answer in ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    described = answers[1].file_descriptor_response.file_descriptor_proto[0]
    assert FileDescriptorProto.FromString(described) == ours
