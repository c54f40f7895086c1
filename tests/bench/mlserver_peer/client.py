"""Asks MLServer over gRPC, one after the other, and prints the median in seconds: client.py PORT WARM-UP TRIPS."""

from __future__ import annotations

import statistics
import sys
import time

import grpc
import mlserver.grpc.dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

WINDOW = [50.0, 21.0, 77.0, 0.0, 28.0, 0.0, 27.0, 48.0, 22.0]


def is_ready(stub: GRPCInferenceServiceStub, request: pb.ModelReadyRequest) -> bool:
    try:
        return bool(stub.ModelReady(request, wait_for_ready=True, timeout=60).ready)
    except grpc.RpcError:
        return False  # it does not know the model yet


def main(port: str, warm_up: str, trips: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        contents = pb.InferTensorContents(fp32_contents=WINDOW)
        tensor = pb.ModelInferRequest.InferInputTensor(name="window", datatype="FP32", shape=[1, 9], contents=contents)
        request = pb.ModelInferRequest(model_name="autoencoder", inputs=[tensor])
        ready = pb.ModelReadyRequest(name="autoencoder")
        while not is_ready(stub, ready):
            time.sleep(0.1)
        took = []
        for number in range(int(warm_up) + int(trips)):
            start = time.perf_counter()
            stub.ModelInfer(request, wait_for_ready=True, timeout=60)
            if number >= int(warm_up):
                took.append(time.perf_counter() - start)
        print(statistics.median(took))


if __name__ == "__main__":
    main(*sys.argv[1:])
