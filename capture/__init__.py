"""The world as frames: sources, their lifecycle and the hand-over of the newest frame."""
