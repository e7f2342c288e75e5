"""Learning: a frozen config, data as a function of the step, and a loop that goes on to the bit."""
