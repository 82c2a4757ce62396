"""The vLLM backend's tensors and manners."""

import json

import numpy as np
from reciting import Job, Refused, Speaker

KNOWN = {
    "n", "best_of", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k",
    "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "logprobs", "logit_bias",
    "skip_special_tokens", "guided_decoding", "structured_outputs",
}  # fmt: skip


def flag(values, name):
    return any(values.get(name, []))


class TritonPythonModel(Speaker):
    def job(self, request_id, values, cancelled, parameters):
        stream = flag(values, "stream")
        if "exclude_input_in_output" in values and not flag(values, "exclude_input_in_output") and stream:
            self._fail("When streaming, `exclude_input_in_output` = False is not allowed.")
        if given := values.get("sampling_parameters"):
            try:
                parameters = json.loads(given[0])
            except ValueError as error:
                self._fail(error)
        if unknown := sorted(set(parameters) - KNOWN):
            self._fail(f"Unexpected keyword argument '{unknown[0]}'")
        if float(parameters.get("temperature", 1)) < 0:
            self._fail(f"temperature must be non-negative, got {parameters['temperature']}.")
        stop = parameters.get("stop") or []
        return Job(
            self.name,
            request_id,
            values["text_input"][0].decode(),
            cancelled,
            limit=int(parameters.get("max_tokens", 16)),
            stop=[stop] if isinstance(stop, str) else stop,
        )

    def answers(self, job, values):
        if flag(values, "stream"):
            # A token late, for only then is it known whether it was the last.
            last, counted = "", 0
            for text in job.texts():
                if job.count > 1:
                    yield self._outputs(job, values, last, 1, "None")
                    counted += 1
                last = text
            if job.reason == "cancelled":
                raise Refused("Request was cancelled", "CANCELLED")
            yield self._outputs(job, values, last, job.count - counted, job.reason)
        else:
            before = "" if flag(values, "exclude_input_in_output") else job.prompt
            said = "".join(job.texts())
            if job.reason == "cancelled":
                raise Refused("Request was cancelled", "CANCELLED")
            yield self._outputs(job, values, before + said, job.count, job.reason)

    def _outputs(self, job, values, text, count, reason):
        asked = {
            "finish_reason": [reason.encode()],
            "num_input_tokens": [np.uint32(len(job.prompt.split()))],
            "num_output_tokens": [np.uint32(count)],
        }
        return {
            "text_output": [text.encode()],
            **{name: given for name, given in asked.items() if flag(values, f"return_{name}")},
        }

    def _fail(self, why):
        raise Refused(f"Error generating stream: {why}")
