"""Who may log in: certificates that end by themselves, given out and taken back."""
