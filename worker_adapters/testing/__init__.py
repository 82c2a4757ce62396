"""For testing adapters, and your own code without a GPU: the conformance suite and what it stands on.

Production code never imports it. The suite needs pytest.
"""
