"""The OpenAI Realtime dialect with stream events of our own, sans-I/O."""
