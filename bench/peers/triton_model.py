"""What Triton's python backend runs: onnxruntime on the batch that Triton's dynamic batcher formed."""

import json

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op"]["string_value"])
        if options.intra_op_num_threads == 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            parameters["graph"]["string_value"], options, providers=["CPUExecutionProvider"]
        )
        self.input, self.output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name

    def execute(self, requests):
        """Requests have any number of rows each; they are run as one batch and their rows handed back."""
        tensors = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        batch = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        result = self.session.run([self.output], {self.input: batch})[0]
        responses, start = [], 0
        for tensor in tensors:
            rows = result[start : start + len(tensor)]
            start += len(tensor)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(self.output, rows)]))
        return responses
