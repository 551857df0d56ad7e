"""For teaching: exact answers, checks that explain a wrong one, planted bugs, runs gone wrong, grading."""
