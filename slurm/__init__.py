"""Many runs on machines: claiming, draining a plan with workers, and status from files."""
