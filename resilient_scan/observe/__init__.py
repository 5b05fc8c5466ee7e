"""What is seen from outside: logs, metrics, traces, explanations."""
