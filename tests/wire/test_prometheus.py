"""The Prometheus text format: samples, sums, shares and labels, and lines that are none of these."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_adapters.wire.prometheus import Sample, Samples

pytestmark = pytest.mark.vllm

SCRAPE = """\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting 2
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:e2e_request_latency_seconds_bucket{le="+Inf"} 7
vllm:zero 0.0
"""


def test_a_name_is_summed_over_its_labels() -> None:
    """Data parallel engines have a sample each; one that is there and 0 is 0, one that is not is None."""
    samples = Samples(SCRAPE)
    assert samples.total("vllm:num_requests_running") == 7.0
    assert samples.total("vllm:num_requests_waiting") == 2.0
    assert samples.total("vllm:zero") == 0.0
    assert samples.total("vllm:nothing") is None
    assert samples.total() is None


def test_a_share_is_that_of_the_fullest() -> None:
    """Shares cannot be summed."""
    assert Samples(SCRAPE).largest("vllm:kv_cache_usage_perc") == 0.75
    assert Samples(SCRAPE).largest("vllm:nothing") is None


def test_the_first_name_that_is_there_counts() -> None:
    """Generations call the same thing otherwise; a window in which both were there counts it once."""
    both = Samples("new 1\nold 5\n")
    assert (both.total("new", "old"), both.largest("new", "old")) == (1.0, 1.0)
    assert Samples("old 5\n").total("new", "old") == 5.0


def test_a_name_is_matched_whole() -> None:
    """A name that begins another is not it."""
    samples = Samples(SCRAPE)
    assert samples.all("vllm:num_requests") == []
    assert samples.all("vllm:e2e_request_latency_seconds") == []
    assert samples.all("vllm:num_requests_waiting") == [Sample("vllm:num_requests_waiting", {}, 2.0)]


@pytest.mark.parametrize(
    ("line", "labels"),
    [
        ('a{x="1"} 1', {"x": "1"}),
        ('a{x="1",y="b c",} 1', {"x": "1", "y": "b c"}),
        ('a{ x = "1" } 1', {}),  # no server writes it so
        ("a{} 1", {}),
        ('a{x="}"} 1', {"x": "}"}),
        ('a{x="a,y=b",y="c"} 1', {"x": "a,y=b", "y": "c"}),
        ('a{x="say \\"hi\\""} 1', {"x": 'say \\"hi\\"'}),
        ('a{x=""} 1', {"x": ""}),
        ('a{x="None",y="True"} 1', {"x": "None", "y": "True"}),
        ('a{x="1"}   1   1395066363000', {"x": "1"}),
        ("a\t1", {}),
    ],
)
def test_a_line_has_labels_a_value_and_maybe_a_time(line: str, labels: dict[str, str]) -> None:
    """Braces, commas and quotes inside a value, a final comma, and a time behind the value."""
    assert Samples(line).all("a") == [Sample("a", labels, 1.0)]
    assert Samples(line).labels("a") == labels


def test_labels_are_those_of_the_first_sample() -> None:
    """And none where there is no sample."""
    assert Samples('a{x="1"} 1\na{x="2"} 1').labels("a") == {"x": "1"}
    assert Samples("").labels("a") == {}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "x", "", "1e999"])
def test_a_value_that_cannot_be_counted_is_no_sample(value: str) -> None:
    """NaN and infinity would spoil every sum."""
    assert Samples(f"a {value}\nb 1").total("a") is None
    assert Samples(f"a {value}\nb 1").total("b") == 1.0


@pytest.mark.parametrize("line", ["# a 1", "", " ", "a", "{x} 1", "<html>a 1</html>", '{"a": 1}', "0a 1"])
def test_a_line_of_another_kind_is_passed_over(line: str) -> None:
    """Comments, pages of proxies and TensorRT-LLM's JSON hold no samples."""
    samples = Samples(f"{line}\r\nb 1\r\n")
    assert samples.all("a") == []
    assert samples.total("b") == 1.0


@settings(max_examples=100)
@given(st.text(max_size=200) | st.text('a{}="\\, 1.eE+-#\n', max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    """Whatever stands there, samples are finite numbers with names."""
    samples = Samples(text)
    for name in [*text.split(), "a"]:
        total = samples.total(name)
        assert total is None or not math.isnan(total)


def test_a_long_line_costs_little() -> None:
    """A hostile line is read in linear time."""
    text = 'a{x="' + '\\"' * 200_000 + "\n" + "a{" * 200_000 + "\n" + "a{" + 'x="1",' * 10_000 + "} 1\n"
    assert Samples(text).total("a") == 1.0
