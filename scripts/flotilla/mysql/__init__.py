"""The MySQL cluster as a whole: who is primary, how it becomes whole, how the role moves."""
