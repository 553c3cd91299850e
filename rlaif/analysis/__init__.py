"""What a constitution does: tests of its principles, coverage in a run, and the impact of an edit."""
