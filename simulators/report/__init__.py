"""What a replay found: for people (one HTML file, no network), for programs (JSON), and for a CI job (guardrails)."""
