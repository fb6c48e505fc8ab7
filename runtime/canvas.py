from foveate.engines.canvas import canvas_feeds as canvas_feeds
