"""Prometheus metrics: `PrometheusMetrics`, and what brings them to a scraper, a Pushgateway or a file."""

from resilient_scan.observe.metrics import PrometheusMetrics, exposition, push, worker_ended, write_textfile

__all__ = ["PrometheusMetrics", "exposition", "push", "worker_ended", "write_textfile"]
