"""inferplan: the cheapest way to run a language model here that still meets your latency SLA."""

__version__ = "0.1.0"
