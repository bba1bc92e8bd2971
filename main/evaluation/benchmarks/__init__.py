"""A few benchmarks whose answers can be verified, from local files as they are published."""

from main.evaluation.benchmarks.evaluate import BENCHMARKS, BenchmarkResult, evaluate_benchmark

__all__ = ["BENCHMARKS", "BenchmarkResult", "evaluate_benchmark"]
