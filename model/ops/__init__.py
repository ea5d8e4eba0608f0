"""Each operation once in plain torch, the reference, and once fast; `dispatch` chooses."""
