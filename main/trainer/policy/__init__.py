"""Log-probabilities of the policy that is trained and of its reference."""
