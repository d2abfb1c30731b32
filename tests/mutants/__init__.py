"""Whether the tests of health/ notice that its code is wrong: mutmut on a copy, and a count of what it found."""
