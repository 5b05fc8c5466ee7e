"""What people and machines see of a runner: logs, metrics, traces, explanations."""
