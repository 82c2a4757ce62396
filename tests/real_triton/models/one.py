"""A model that is not decoupled: one request, one response."""

import json

import triton_python_backend_utils as pb_utils
from reciting import Job, Refused, tensor


class TritonPythonModel:
    def initialize(self, args):
        self._name = json.loads(args["model_config"])["name"]

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        values = {each.name(): each.as_numpy().reshape(-1).tolist() for each in request.inputs()}
        (limit,) = values.get("max_tokens", [None])
        job = Job(self._name, request.request_id(), values["text_input"][0].decode(), request.is_cancelled, limit=limit)
        try:
            said = b"".join(job.tokens())
        except Refused as refusal:
            return refusal.response
        if job.reason == "cancelled":
            return Refused("Request was cancelled", "CANCELLED").response
        return pb_utils.InferenceResponse(output_tensors=[tensor("text_output", [said])])
