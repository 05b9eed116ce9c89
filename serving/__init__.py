"""The front's room: HTTP in, jobs out to the device worker, tokens back, text and frames to the client."""
