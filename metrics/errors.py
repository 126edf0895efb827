"""What a metric raises when it cannot run."""


class MetricUnavailable(Exception):
    """The metric cannot give a number here; the message is the one-line reason. Training leaves it out and goes on."""
