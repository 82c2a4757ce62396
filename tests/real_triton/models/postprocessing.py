"""The last step of TensorRT-LLM's ensemble: numbers become text again."""

import triton_python_backend_utils as pb_utils
from reciting import tensor


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        ids = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy().reshape(-1).tolist()
        outputs = [tensor("OUTPUT", [bytes(ids)], rank=2)]
        for name, copied in (("CUM_LOG_PROBS", "OUT_CUM_LOG_PROBS"), ("SEQUENCE_INDEX", "OUT_SEQUENCE_INDEX")):
            given = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            outputs.append(pb_utils.Tensor(copied, given))
        return pb_utils.InferenceResponse(output_tensors=outputs)
