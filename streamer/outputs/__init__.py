"""Where events go: webhooks, MQTT, commands and whoever reads the feed, each told in its own time."""
