"""What tests have in common: small inputs, models and runs, and how values are compared."""
