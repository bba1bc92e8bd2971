"""The training loop, which knows no algorithm, and what it saves, records and guards."""
