"""The census: a tiny model of every causal-LM architecture, compiled and compared."""
