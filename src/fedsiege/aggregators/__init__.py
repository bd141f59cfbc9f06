"""How the server combines a cohort's updates into one: one rule, one file."""
