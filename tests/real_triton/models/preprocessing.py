"""The first step of TensorRT-LLM's ensemble: a prompt becomes the numbers of its bytes."""

import numpy as np
import triton_python_backend_utils as pb_utils
from reciting import tensor


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        prompt = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy().reshape(-1)[0]
        length = pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy().reshape(-1)[0]
        words = pb_utils.get_input_tensor_by_name(request, "STOP_WORDS_DICT")
        stop = b"\0".join(words.as_numpy().reshape(-1).tolist()) if words is not None else b""
        return pb_utils.InferenceResponse(
            output_tensors=[
                tensor("INPUT_ID", [np.int32(byte) for byte in prompt], rank=2),
                tensor("REQUEST_INPUT_LEN", [np.int32(len(prompt))], rank=2),
                tensor("REQUEST_OUTPUT_LEN", [length], rank=2),
                tensor("STOP_WORDS_IDS", [np.int32(byte) for byte in stop or b"\0"], rank=2),
            ]
        )
