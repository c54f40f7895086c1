"""The autoencoder in MLServer: runs in MLServer's own environment, which knows nothing of this project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Served(MLModel):
    async def load(self) -> bool:
        self._interpreter = Interpreter(str(Path(self.settings.parameters.uri)), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        self._interpreter.set_tensor(self._input, values)
        self._interpreter.invoke()
        output = NumpyCodec.encode_output("output", self._interpreter.get_tensor(self._output))
        return InferenceResponse(model_name=self.name, outputs=[output])
