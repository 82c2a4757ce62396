"""A model that does not load."""


class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def execute(self, requests):
        raise NotImplementedError
