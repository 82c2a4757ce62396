"""TensorRT-LLM's model of its LLM API: in a stream, each response has all the text so far."""

from reciting import Job, Refused, Speaker, words


def flag(values, name):
    return any(values.get(name, []))


class TritonPythonModel(Speaker):
    def job(self, request_id, values, cancelled, parameters):
        return Job(
            self.name,
            request_id,
            values["text_input"][0].decode(),
            cancelled,
            limit=(values.get("sampling_param_max_tokens") or [32])[0],
            stop=words(values, "sampling_param_stop"),
        )

    def answers(self, job, values):
        so_far = ""
        for text in job.texts():
            so_far += text
            if flag(values, "streaming"):
                yield self._outputs(job, values, so_far, "None")
        if job.reason == "cancelled":
            raise Refused("Request cancelled by client", "CANCELLED")
        yield self._outputs(job, values, so_far, job.reason)

    def _outputs(self, job, values, text, reason):
        outputs = {"text_output": [text.encode()]}
        for name, given in (("finish_reason", reason), ("stop_reason", "None")):
            if flag(values, f"return_{name}"):
                outputs[name] = [given.encode()]
        return outputs
