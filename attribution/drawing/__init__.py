"""What the report and the explorer draw alike: geometry, words, templates' parts and the look of both."""
