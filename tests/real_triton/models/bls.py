"""``tensorrt_llm_bls`` of TensorRT-LLM 0.16: with ``accumulate_tokens`` each response has all the text so far, decoded
anew, so that a broken character at its end shows as U+FFFD until the next response. An answer in one piece begins with
the prompt where it is not told to leave that out.
"""

import numpy as np
from reciting import Job, Speaker, words


class TritonPythonModel(Speaker):
    def job(self, request_id, values, cancelled, parameters):
        return Job(
            self.name,
            request_id,
            values["text_input"][0].decode(),
            cancelled,
            limit=values["max_tokens"][0],
            stop=words(values, "stop_words"),
        )

    def answers(self, job, values):
        stream = any(values.get("stream", []))
        said = b"" if stream or any(values.get("exclude_input_in_output", [])) else job.prompt.encode()
        accumulates = self.parameters.get("accumulate_tokens") == "true"
        for token in job.tokens() if accumulates else map(str.encode, job.texts()):
            said += token
            if stream:
                yield self._outputs(said)
                said = said if accumulates else b""
        if not stream:
            yield self._outputs(said)

    def _outputs(self, said):
        return {
            "text_output": [said.decode(errors="replace").encode()],
            "cum_log_probs": [np.float32(0)],
            "output_log_probs": [np.float32(0)],
            "sequence_index": [np.int32(0)],
        }
