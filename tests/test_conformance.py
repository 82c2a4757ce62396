"""The conformance suite over every catalogued adapter."""

from contextlib import closing

import pytest

from worker_adapters.adapters.catalog import CATALOG
from worker_adapters.testing.conformance import ConformanceSuite
from worker_adapters.testing.stand import stand_for


class TestConformance(ConformanceSuite):
    @pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in sorted(CATALOG)])
    def stand(self, request):
        with closing(stand_for(request.param)) as stand:
            yield stand
