"""The distillation terms: pure functions, the terms built on them, and what adds them up."""
