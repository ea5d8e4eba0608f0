"""Standing questions that tell: what is looked for, and when that is an event."""
