"""Says its text raw, byte by byte where a character has several: a model that knows no convention."""

from reciting import Job, Speaker, words


class TritonPythonModel(Speaker):
    def job(self, request_id, values, cancelled, parameters):
        (limit,) = values.get("max_tokens", [None])
        asked = values["text_input"][0].decode()
        job = Job(self.name, request_id, asked, cancelled, limit=limit, stop=words(values, "stop"))
        if delay := values.get("delay_ms"):
            job.wishes["delay"] = str(delay[0] / 1000)
        if any(values.get("repeat", [])):
            job.wishes["echo"] = ""
        return job

    def answers(self, job, values):
        for token in job.tokens():
            yield {"text_output": [token]}
