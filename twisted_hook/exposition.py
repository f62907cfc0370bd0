"""Writes metrics as Prometheus reads them. Imported when somebody asks: the library takes its time to load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from twisted_hook.metrics import Family, Sort
from twisted_hook.timings import Durations

PREFIX = "hookdeploy_"


def text(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """All of them and what is known of the process, in the format that is accepted; and that one's content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Written(families))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Written(Collector):
    """What ``prometheus_client`` wants to be asked."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return map(_metric, self._families)


def _metric(family: Family) -> Metric:
    name = PREFIX + family.name
    if family.sort is Sort.HISTOGRAM:
        return _histogram(name, family)
    kind = CounterMetricFamily if family.sort is Sort.COUNTER else GaugeMetricFamily
    metric = kind(name, family.words, labels=family.labels)
    for labels, value in family.values.items():
        metric.add_metric(labels, cast("float", value))
    return metric


def _histogram(name: str, family: Family) -> Metric:
    metric = HistogramMetricFamily(name, family.words, labels=family.labels)
    for labels, value in family.values.items():
        durations = cast("Durations", value)
        limits = [*map(floatToGoString, durations.limits), "+Inf"]
        metric.add_metric(labels, list(zip(limits, durations.within, strict=True)), durations.total)
    return metric
