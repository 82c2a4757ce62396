"""The engine inside TensorRT-LLM's ensemble: numbers in and numbers out, and a way to stop a job by its id."""

import threading

import numpy as np
from reciting import Job, Refused, Speaker


class TritonPythonModel(Speaker):
    def initialize(self, args):
        super().initialize(args)
        self._running = {}
        self._lock = threading.Lock()

    def job(self, request_id, values, cancelled, parameters):
        if any(values.get("stop", [])):
            if not request_id:
                raise Refused("A request id must be provided for request cancellation")
            with self._lock:
                found = self._running.get(request_id)
            if found is not None:
                found.note("told to stop")
                found.abort()
            raise Refused("Request cancelled by client", "CANCELLED")
        stop = bytes(values.get("stop_words_list", [])).decode().split("\0")
        job = Job(
            self.name,
            request_id,
            bytes(values["input_ids"]).decode(),
            cancelled,
            limit=values["request_output_len"][0],
            stop=[each for each in stop if each],
        )
        with self._lock:
            self._running[request_id] = job
        return job

    def answers(self, job, values):
        said = "" if any(values.get("exclude_input_in_output", [])) else job.prompt
        streaming = any(values.get("streaming", []))
        for text in job.texts():
            said += text
            if streaming and said:
                yield self._outputs(said)
                said = ""
        if not streaming or said:
            yield self._outputs(said)

    def _outputs(self, said):
        return {
            "output_ids": [np.int32(byte) for byte in said.encode()],
            "sequence_length": [np.int32(len(said.encode()))],
            "cum_log_probs": [np.float32(0)],
            "output_log_probs": [np.float32(0)],
            "sequence_index": [np.int32(0)],
        }
