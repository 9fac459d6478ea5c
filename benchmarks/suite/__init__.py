"""The suite behind `python -m benchmarks`: one module a topic, and what they share."""
